"""`his2lip models convert, blend, export`: checkpoints in and out, with the terms of use they carry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from his2lip.cli.console import say
from his2lip.cli.models import show_terms
from his2lip.cli.options import MODEL_HELP
from his2lip.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

Out = Annotated[Path, typer.Option(help="The folder to write; it must not exist, or be empty.")]
Source = Literal["released", "plip", "transformers", "open_clip"]
Tokenizer = Literal["clip", "bert"]


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
    _require_empty(out)
    if tokenizer == "bert" and source != "released":
        what = "--tokenizer is for released files only; other formats bring their own tokenizer"
        raise ConfigError(what, key="--tokenizer", fix="leave it out")
    if source == "released":
        model, meta = _from_released(file, backbone, tokenizer)
    else:
        model, meta = _from_library(file, source, backbone)
    converted = {"from": source, "file": file.name}
    if file.is_file():
        from his2lip.models import file_digest

        converted["sha256"] = file_digest(file)
    _save(out, model, meta | {"converted": converted})


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


def export_model(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    out: Out,
    format: Annotated[
        Literal["open_clip", "transformers"],
        typer.Option(help="open_clip: any model, as local-dir:. transformers: a CLIPModel, ViT-B/32 only."),
    ] = "open_clip",
) -> None:
    """Write a model for another tool, with the terms of use that it carries."""
    from his2lip.models import conditions, load_model, meta_of, to_open_clip_folder, to_transformers_folder

    _require_empty(out)
    loaded, meta = load_model(model), meta_of(model)
    terms = conditions(model, meta)
    if format == "open_clip":
        to_open_clip_folder(loaded, out, meta=meta)
        load = f'open_clip.create_model("local-dir:{out}")'
    else:
        to_transformers_folder(loaded, out, conditions=terms)
        load = f'CLIPModel.from_pretrained("{out}")'
    _show_written(loaded, out)
    show_terms(terms)
    say(f"load it: {load}")


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


def _from_released(
    file: Path, backbone: str | None, tokenizer: Tokenizer
) -> tuple[DualEncoder, dict[str, Any]]:
    """The authors' fine-tuned model: trained on MIHIC, from CLIP or PLIP."""
    from his2lip.data.cards import load_card, terms_of_card
    from his2lip.models import from_released

    if backbone not in ("clip", "plip"):
        what = "a released file does not record its backbone"
        raise ConfigError(what, where=file, key="--backbone", fix="add --backbone clip or plip")
    model = from_released(file, backbone=backbone, tokenizer=tokenizer)  # type: ignore[arg-type]
    terms = terms_of_card("mihic", load_card("mihic").model_dump(mode="json"))
    return model, {"began_as": backbone, "terms": terms.to_json()}


def _from_library(file: Path, source: Source, backbone: str | None) -> tuple[DualEncoder, dict[str, Any]]:
    """A transformers CLIPModel, open_clip's hub layout, or a state dict of open_clip's training."""
    from his2lip.models import from_open_clip, from_transformers, load_model

    if source == "open_clip" and not file.is_dir():
        if backbone is None:
            what, fix = (
                "a state dict does not record its architecture",
                "add --backbone, such as --backbone ViT-B-32",
            )
            raise ConfigError(what, where=file, key="--backbone", fix=fix)
        return from_open_clip(file, architecture=backbone), {}
    if backbone is not None:
        what = "a folder records its own architecture"
        raise ConfigError(what, where=file, key="--backbone", fix="leave --backbone out")
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


def _save(out: Path, model: DualEncoder, meta: dict[str, Any]) -> None:
    """Writes the checkpoint, and prints where it is and its terms of use."""
    from his2lip.models import conditions, save_checkpoint

    save_checkpoint(out, model, meta=meta)
    _show_written(model, out)
    show_terms(conditions(model.name, meta))
    say(f"use it: his2lip classify IMAGE --model {out}")
