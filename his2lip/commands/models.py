"""`his2lip models convert, blend, export`: checkpoints in and out, with the terms that they inherit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from his2lip.commands.console import say
from his2lip.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

Source = Literal["released", "plip", "transformers", "open_clip"]


def convert_model(
    file: Path, out: Path, *, source: Source, backbone: str | None, tokenizer: Literal["clip", "bert"]
) -> None:
    """Writes the checkpoint and says what it holds."""
    require_new(out)
    if tokenizer == "bert" and source != "released":
        raise ConfigError("--tokenizer is for released files; others bring their own", fix="leave it out")
    model, made_of = (
        _released(file, backbone, tokenizer) if source == "released" else _foreign(file, source, backbone)
    )
    converted = {"from": source, "file": file.name} | ({"sha256": _digest(file)} if file.is_file() else {})
    _save(out, model, made_of | {"converted": converted})


def blend_models(base: str, tuned: str, out: Path, *, alpha: float) -> None:
    """Writes the checkpoint between two models and says what it holds."""
    from his2lip.models import blend, blended_meta, load_model, meta_of

    require_new(out)
    first, second = load_model(base), load_model(tuned)
    made_of = {"alpha": alpha, "base": first.tensor_digest(), "tuned": second.tensor_digest()}
    _save(
        out,
        blend(first, second, alpha=alpha),
        blended_meta(base, meta_of(base), tuned, meta_of(tuned)) | {"blend": made_of},
    )


def export_model(name: str, out: Path, *, format: Literal["open_clip", "transformers"]) -> None:
    """Writes the model for another tool; its terms of use are said, and stand beside it."""
    from his2lip.models import conditions, load_model, meta_of, to_open_clip_folder, to_transformers_folder

    require_new(out)
    model, meta = load_model(name), meta_of(name)
    said = conditions(name, meta)
    if format == "open_clip":
        to_open_clip_folder(model, out, meta=meta)
        load = f'open_clip.create_model("local-dir:{out}")'
    else:
        to_transformers_folder(model, out, conditions=said)
        load = f'CLIPModel.from_pretrained("{out}")'
    say_written(model, out)
    say_conditions(said)
    say(f"load it: {load}")


def require_new(out: Path) -> None:
    """Refuses a place where something stands already."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError("something stands here already", where=out, fix="name another --out, or remove it")


def say_written(model: DualEncoder, out: Path) -> None:
    """Where a model was written, and the digest that identifies it."""
    say(f"{model.name} written to {out}")
    say(f"  weights    sha256 {model.tensor_digest()}")
    say(f"  input      {model.preprocess.size[0]} px, text of up to {model.tokenizer.context_length} tokens")
    say(f"  compares   by {model.similarity}")


def say_conditions(conditions: Sequence[str]) -> None:
    """The terms of use, a line each."""
    for i, condition in enumerate(conditions):
        say(f"  {'' if i else 'terms':<10} {condition}")


def _released(
    file: Path, backbone: str | None, tokenizer: Literal["clip", "bert"]
) -> tuple[DualEncoder, dict[str, Any]]:
    """The authors' fine-tuned model: trained on MIHIC, from CLIP or PLIP."""
    from his2lip.data.cards import load_card, terms_of_card
    from his2lip.models import from_released

    if backbone not in ("clip", "plip"):
        raise ConfigError(
            "a released file does not say what it was tuned from", fix="add --backbone clip or plip"
        )
    model = from_released(file, backbone=backbone, tokenizer=tokenizer)  # type: ignore[arg-type]
    terms = terms_of_card("mihic", load_card("mihic").model_dump(mode="json"))
    return model, {"began_as": backbone, "terms": terms.to_json()}


def _foreign(file: Path, source: Source, backbone: str | None) -> tuple[DualEncoder, dict[str, Any]]:
    """A transformers CLIPModel, open_clip's hub layout, or a state dict of open_clip's training."""
    from his2lip.models import from_open_clip, from_transformers, load_model

    if source == "open_clip" and not file.is_dir():
        if backbone is None:
            raise ConfigError(
                "a state dict does not say its architecture", fix="add --backbone ViT-B-32, or such"
            )
        return from_open_clip(file, architecture=backbone), {}
    if backbone is not None:
        raise ConfigError("a folder says what it holds", fix="leave --backbone out")
    if not file.is_dir():
        raise CheckpointError(
            "there is no such folder", where=file, fix="give the folder that holds the weights"
        )
    if source == "open_clip" and not (file / "open_clip_config.json").is_file():
        what = "this folder has no open_clip_config.json"
        raise CheckpointError(what, where=file, fix="--from transformers reads a CLIPModel's folder")
    if source == "open_clip":
        model = load_model(f"local-dir:{file}")
        model.name = file.name
        return model, {}
    name = "plip" if source == "plip" else file.name
    return from_transformers(file, name=name), {"began_as": name}


def _digest(file: Path) -> str:
    from his2lip.models import file_digest

    return file_digest(file)


def _save(out: Path, model: DualEncoder, meta: dict[str, Any]) -> None:
    from his2lip.models import conditions, save_checkpoint

    save_checkpoint(out, model, meta=meta)
    say_written(model, out)
    say_conditions(conditions(model.name, meta))
    say(f"use it: his2lip classify IMAGE --model {out}")
