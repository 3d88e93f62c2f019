"""`his2lip models`: what is known by name, and what a checkpoint was made from."""

from __future__ import annotations

from his2lip.commands.console import percent, say, table


def list_models() -> None:
    """One row a backbone; weights that need a download say from where."""
    from his2lip.models import list_backbones

    rows = [(b.name, b.what, b.licence, b.weights) for b in list_backbones()]
    table(("name", "what it is", "licence of the weights", "weights"), rows)
    say("Also: any open_clip architecture (ViT-B-16:laion2b_s34b_b88k), hf-hub:ORG/NAME, local-dir:PATH,")
    say("a checkpoint's folder (runs/train/NAME/best), and models:/NAME@ALIAS of MLflow.")


def show_model(path: str) -> None:
    """A checkpoint's provenance."""
    from his2lip.models import read_meta

    meta = read_meta(path)
    rows = [
        (key, meta[key])
        for key in ("name", "step", "tensor_digest", "data_digest", "code_version")
        if key in meta
    ]
    table(("", "value"), rows)
    scores = {key: value for key, value in meta.get("metrics", {}).items() if key.startswith("select/")}
    for key, value in scores.items():
        say(f"{key}: {percent(value) if 'f1' in key or 'accuracy' in key else f'{value:.4f}'}")
