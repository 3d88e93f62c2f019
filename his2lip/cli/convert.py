"""`his2lip models convert, blend, export`: checkpoints in and out, with the terms of use they carry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from his2lip.cli.console import say
from his2lip.cli.models import show_terms
from his2lip.cli.options import MODEL_HELP
from his2lip.cli.registry import command
from his2lip.errors import ConfigError

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

Out = Annotated[Path, typer.Option(help="The folder to write; it must not exist, or be empty.")]
Source = Literal["released", "plip", "transformers", "open_clip"]
Tokenizer = Literal["clip", "bert"]


@command("models convert")
def convert_model(
    file: Annotated[Path, typer.Argument(help="The file or folder as its authors publish it.")],
    out: Out,
    source: Annotated[
        Source,
        typer.Option(
            "--from",
            help="released: one state dict of the HIS2LIP authors' training code. plip, transformers: a "
            "CLIPModel's folder. open_clip: a hub layout's folder, or a state dict of its training.",
        ),
    ],
    backbone: Annotated[
        str | None,
        typer.Option(help="released: clip or plip. open_clip's state dict: its architecture."),
    ] = None,
    tokenizer: Annotated[
        Tokenizer,
        typer.Option(help="The tokenizer of a released text tower (bert is bert-base-uncased)."),
    ] = "clip",
) -> None:
    """Turn published weights into a checkpoint; pickled programs are refused and never run."""
    from his2lip.models import convert

    _require_empty(out)
    model, meta = convert(file, source=source, backbone=backbone, tokenizer=tokenizer)
    _save(out, model, meta)


@command("models blend")
def blend_models(
    base: Annotated[str, typer.Argument(help="The model that TUNED was fine-tuned from.")],
    tuned: Annotated[str, typer.Argument(help="The fine-tuned model.")],
    alpha: Annotated[float, typer.Option(help="Weight of TUNED: 0 gives BASE, 1 gives TUNED.")],
    out: Out,
) -> None:
    """Interpolate the weights of a model and its fine-tuned version (WiSE-FT, Wortsman et al. 2022)."""
    from his2lip.models import blend, blended_meta, load_model, meta_of

    _require_empty(out)
    first, second = load_model(base), load_model(tuned)
    made_of = {"alpha": alpha, "base": first.tensor_digest(), "tuned": second.tensor_digest()}
    meta = blended_meta(base, meta_of(base), tuned, meta_of(tuned)) | {"blend": made_of}
    _save(out, blend(first, second, alpha=alpha), meta)


@command("models export")
def export_model(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    out: Out,
    format: Annotated[
        Literal["open_clip", "transformers"],
        typer.Option(help="open_clip: any model, as local-dir:. transformers: a CLIPModel, ViT-B/32 only."),
    ] = "open_clip",
) -> None:
    """Write a model for another tool, with the terms of use that it carries."""
    from his2lip.models import export, load_model, meta_of, terms_of_use

    _require_empty(out)
    loaded, meta = load_model(model), meta_of(model)
    export(loaded, out, format=format, meta=meta)
    _show_written(loaded, out)
    show_terms(terms_of_use(loaded.name, meta))
    if format == "open_clip":
        say(f'load it: open_clip.create_model("local-dir:{out}")')
    else:
        say(f'load it: CLIPModel.from_pretrained("{out}")')


def _require_empty(out: Path) -> None:
    """Raises ConfigError where `out` is a file or a folder with content."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        fix = "name another --out, or remove it"
        raise ConfigError("this place is not empty", where=out, key="--out", fix=fix)


def _show_written(model: DualEncoder, out: Path) -> None:
    """Prints where a model was written, and the digest that identifies it."""
    say(f"{model.name} written to {out}")
    say(f"  weights    sha256 {model.tensor_digest()}")
    say(f"  input      {model.preprocess.size[0]} px, text of up to {model.tokenizer.context_length} tokens")
    say(f"  compares   by {model.similarity}")


def _save(out: Path, model: DualEncoder, meta: dict[str, Any]) -> None:
    """Writes the checkpoint, and prints where it is and its terms of use."""
    from his2lip.models import save_checkpoint, terms_of_use

    save_checkpoint(out, model, meta=meta)
    _show_written(model, out)
    show_terms(terms_of_use(model.name, meta))
    say(f"use it: his2lip classify IMAGE --model {out}")
