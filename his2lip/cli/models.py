"""`his2lip models list, show, convert, blend, export, promote`: models, in files and in MLflow."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from his2lip.cli.console import percent, say, table
from his2lip.cli.model_card import benchmarks_in, figures_of, write_model_card
from his2lip.cli.options import MODEL_HELP, check_outputs, refuse_unused
from his2lip.cli.registry import command
from his2lip.errors import CheckpointError, ConfigError, ModelError, TrackingError
from his2lip.mlflow_store import sqlite_file, store_uri
from his2lip.resources import STORAGE

if TYPE_CHECKING:
    from his2lip.models import DualEncoder, TrainingRecord
    from his2lip.report import Champion
    from his2lip.tracking import Promoted, Scored, Tracker

_SHOWN_KEYS = (
    "name",
    "step",
    "tensor_digest",
    "data_digest",
    "similarity",
    "converted",
    "blend",
    "code_version",
)
TableRow = tuple[str, str, str, str, str]


@command("models list")
def list_models() -> None:
    """List models: known by name, in this machine's caches, and in MLflow with their scores."""
    scored, promoted, trouble = _in_mlflow()
    columns = ("model", "what it is", "weights", "licence, terms", "macro F1, percent, of weights")
    table(columns, [*_known_rows(scored), *_cached_rows(), *_mlflow_rows(scored, promoted)])
    say("Commands accept the names in the first column as a model, and also an open_clip architecture with")
    say("its tag (ViT-B-16:laion2b_s34b_b88k), hf-hub:ORG/NAME, local-dir:PATH and a checkpoint's folder.")
    if trouble:
        say(trouble)


@command("models show")
def show_model(model: Annotated[str, typer.Argument(help=MODEL_HELP)]) -> None:
    """Show what a checkpoint was made from: configuration, data, step, metrics, digests, terms of use."""
    from his2lip.models import load_model, meta_of, terms_of_use, training_record

    meta = meta_of(model)
    if not meta:
        what = "this is not a checkpoint of his2lip, so its provenance is unknown"
        raise CheckpointError(
            what, where=model, fix="his2lip models list shows what is known of other models"
        )
    load_model(model)  # a damaged checkpoint is an error, whatever its provenance says
    table(("", "value"), [(key, meta[key]) for key in _SHOWN_KEYS if key in meta])
    scores = {key: value for key, value in meta.get("metrics", {}).items() if key.startswith("select/")}
    for key, value in scores.items():
        say(f"{key}: {percent(value) if 'f1' in key or 'accuracy' in key else f'{value:.4f}'}")
    record = training_record(model)
    if record is not None:
        say(f"  {'data':<10} {record}")
    show_terms(terms_of_use(model, meta))


def show_terms(terms: Sequence[str]) -> None:
    """Prints the terms of use, one per line."""
    for i, term in enumerate(terms):
        say(f"  {'' if i else 'terms':<10} {term}")


def _in_mlflow() -> tuple[list[Scored], list[Promoted], str | None]:
    """What the store holds, if there is one, and a sentence where it cannot be read."""
    file = sqlite_file(store_uri())
    if file is not None and not file.is_file():
        return [], [], None
    from his2lip.tracking import Tracker, promoted_models, scored_models

    try:
        tracker = Tracker.open()
        return scored_models(tracker), promoted_models(tracker), None
    except TrackingError as error:
        return [], [], f"Models in MLflow are not listed: {error}"


def _known_rows(scored: list[Scored]) -> Iterator[TableRow]:
    from his2lip.models import BACKBONES, cached_backbones

    here = cached_backbones()
    for b in BACKBONES.values():
        place = f"{b.weights}{'' if b.repository is None else ' (here)' if b.name in here else ' (not here)'}"
        known = [_scores(row) for row in scored if row.path == b.name] or [""]
        yield b.name, b.what, place, b.licence, known[0]
        for others in known[1:]:  # of another seed, or of weights that its authors replaced
            yield b.name, "other weights under this name", "", "", others


def _cached_rows() -> Iterator[TableRow]:
    from his2lip.models import cached_models

    for cached in cached_models():
        yield cached.name, "in the cache", f"{cached.repository} (here)", "its authors' own", ""


def _mlflow_rows(scored: list[Scored], promoted: list[Promoted]) -> Iterator[TableRow]:
    """Registered models first, then logged ones that are not registered and have no name of their own."""
    from his2lip.models import BACKBONES

    scores = {row.weights: _scores(row) for row in scored}
    registered = {row.weights for row in promoted}
    for row in promoted:
        what = ", ".join([f"version {row.version} of {row.name}", *row.aliases])
        yield row.uri, what, "MLflow's registry", row.terms or "", scores.get(row.weights or "", "")
    for logged in scored:
        path = logged.path
        if path is None or path in BACKBONES or logged.weights in registered:
            continue
        what = f"{logged.names[0]}, logged by {logged.experiment}"
        yield _short(path), what, *_state_of(path, logged.weights), _scores(logged)


def _state_of(path: str, weights: str) -> tuple[str, str]:
    """Whether a logged model's weights are still at its path, and the terms of use of those that are."""
    from his2lip.models import is_checkpoint, read_meta, terms_summary

    if not is_checkpoint(path):
        return "(here, not compared)" if Path(path).is_dir() else "(not here)", ""
    try:
        meta = read_meta(path)
    except CheckpointError:
        return "(damaged)", ""
    if meta.get("tensor_digest") != weights:
        return "(replaced: other weights are here now)", ""
    return "(here)", terms_summary(path, meta)


def _short(path: str) -> str:
    """The path relative to the current folder where it lies below it."""
    place = Path(path)
    return str(place.relative_to(Path.cwd())) if place.is_relative_to(Path.cwd()) else path


def _scores(row: Scored) -> str:
    """The score on each dataset, `select` first, and the digest of the weights that have them."""
    ordered = sorted(row.scores.items(), key=lambda item: item[0] != "select")
    shown = ", ".join(f"{name} {percent(value)}" for name, value in ordered)
    return f"{shown} ({row.weights[:8]})" if shown else ""


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
        typer.Option(
            help="released: clip or plip. open_clip's state dict: its architecture with the pretrained tag "
            "that training started from, such as ViT-B-32:openai."
        ),
    ] = None,
    tokenizer: Annotated[
        Tokenizer,
        typer.Option(help="The tokenizer of a released text tower (bert is bert-base-uncased)."),
    ] = "clip",
) -> None:
    """Turn published weights into a checkpoint; pickled programs are refused and never run."""
    from his2lip.models import convert, training_record

    _require_empty(out)
    model, meta = convert(file, source=source, backbone=backbone, tokenizer=tokenizer)
    _save(out, model, meta, training_record(str(file)))


@command("models blend")
def blend_models(
    base: Annotated[str, typer.Argument(help="The model that TUNED was fine-tuned from.")],
    tuned: Annotated[str, typer.Argument(help="The fine-tuned model.")],
    alpha: Annotated[
        float, typer.Option(help="Weight of TUNED: 0 gives the weights of BASE, 1 those of TUNED.")
    ],
    out: Out,
) -> None:
    """Interpolate the weights of a model and its fine-tuned version (WiSE-FT, Wortsman et al. 2022)."""
    from his2lip.models import TrainingRecord, blend, blended_meta

    _require_empty(out)
    (first, base_meta, base_data), (second, tuned_meta, tuned_data) = _loaded(base), _loaded(tuned)
    made_of = {"alpha": alpha, "base": first.tensor_digest(), "tuned": second.tensor_digest()}
    meta = blended_meta(base, base_meta, tuned, tuned_meta) | {"blend": made_of}
    trained_on = TrainingRecord.union([base_data, tuned_data])
    _save(out, blend(first, second, alpha=alpha), meta, trained_on)


@command("models export")
def export_model(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    out: Out,
    format: Annotated[
        Literal["open_clip", "transformers"],
        typer.Option(
            help="open_clip: any model, as local-dir:. transformers: a CLIPModel; only models with "
            "open_clip's own ViT and CLIP's text tower, such as clip, plip and their fine-tuned forms."
        ),
    ] = "open_clip",
) -> None:
    """Write a model for another tool, with its terms of use and the model card that it was promoted with.

    For open_clip, the calibrations and the limit of familiarity in the checkpoint's folder are kept too.
    """
    from his2lip.models import checkpoint_folder, export, terms_of_use
    from his2lip.serving import carry

    _require_empty(out)
    loaded, meta, trained_on = _loaded(model)
    export(loaded, out, format=format, meta=meta, trained_on=trained_on)
    with checkpoint_folder(model) as folder:
        if folder is not None:
            carry(folder, out, format=format)
    _show_written(loaded, out)
    show_terms(terms_of_use(loaded.name, meta))
    if format == "open_clip":
        say(f'load it: open_clip.create_model("local-dir:{out}")')
    else:
        say(f'load it: CLIPModel.from_pretrained("{out}")')


def _loaded(model: str) -> tuple[DualEncoder, dict[str, Any], TrainingRecord | None]:
    """A model, what is recorded of it, and its training data, all of one checkpoint."""
    from his2lip.models import folder_of, load_model, meta_of, read_steady, training_record

    return read_steady(
        Path(folder_of(model)), lambda: (load_model(model), meta_of(model), training_record(model))
    )


def _require_empty(out: Path) -> None:
    """Raises ConfigError unless a folder that commands find under this name can be written at `out`."""
    from his2lip.models import BACKBONES

    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        fix = "name another --out, or remove it"
        raise ConfigError("this place is not empty", where=out, key="--out", fix=fix)
    if str(out) in BACKBONES:
        what = f"'{out}' is the name of a model, which commands would load in place of this folder"
        raise ConfigError(what, key="--out", fix=f"name another folder, such as models/{out}")
    if out.is_mount():
        what = "this is the root of a mounted disk, which cannot be replaced by the finished folder"
        raise ConfigError(what, where=out, key="--out", fix="name a folder in it")
    check_outputs({"--out": Path(os.path.realpath(out))}, folders=True)  # written behind a link


def _show_written(model: DualEncoder, out: Path) -> None:
    """Prints where a model was written, and the digest that identifies it."""
    say(f"{model.name} written to {out}")
    say(f"  weights    sha256 {model.tensor_digest()}")
    say(f"  input      {model.preprocess.size[0]} px, text of up to {model.tokenizer.context_length} tokens")
    say(f"  compares   by {model.similarity}")


def _save(out: Path, model: DualEncoder, meta: dict[str, Any], trained_on: TrainingRecord | None) -> None:
    """Writes the checkpoint, and prints where it is and its terms of use."""
    from his2lip.models import save_checkpoint, terms_of_use

    save_checkpoint(out, model, meta=meta, trained_on=trained_on)
    _show_written(model, out)
    show_terms(terms_of_use(model.name, meta))
    say(f"use it: his2lip classify IMAGE --model {out}")


@command("models promote")
def promote_model(
    alias: Annotated[str, typer.Option(help="The alias, such as champion.")],
    model: Annotated[
        str | None,
        typer.Argument(help="A checkpoint, a run, a name on the leaderboard, or a model's name."),
    ] = None,
    best: Annotated[
        Path | None,
        typer.Option(
            metavar="BENCHMARK",
            help="In place of MODEL: the best model of the benchmark in this folder, which must have scored "
            "splits for selection (role=select).",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="mean|COLUMN",
            help="What --best goes by: the mean of chance-corrected balanced accuracy over datasets, or "
            "this figure of one column of the board. Default: mean.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Promote the --best model also where it is not surely above chance: where the lower limit "
            "of its figure, at 95 % for all compared models together, is not above 0, or where there is none "
            "because one dataset has none.",
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="The registered name. Default: the run's.")
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(help="A file that `calibrate` wrote, to store with the model. May be repeated."),
    ] = None,
    storage: Annotated[
        Path, typer.Option(help="The storage of the training run MODEL, and of the benchmarks for the card.")
    ] = Path(STORAGE),
) -> None:
    """Register a model in MLflow; commands then accept models:/NAME@ALIAS as a model.

    The calibrations in the checkpoint's folder `calibrations` are stored with it too, and a model card with
    the figures of the benchmarks in the storage that scored these weights.
    """
    from his2lip.config import digest
    from his2lip.models import read_meta, terms_of_use, terms_summary
    from his2lip.report import choose_champion
    from his2lip.serving import (
        CardContent,
        Familiarity,
        card_description,
        model_files,
        store_calibrations,
    )
    from his2lip.tracking import Tracker, alias_name, model_name, promote

    if alias != alias_name(alias):  # MLflow refuses it only when the version is registered
        what = f"MLflow does not accept '{alias}' as an alias"
        raise ConfigError(what, key="--alias", fix=f"--alias {alias_name(alias)}")
    if name is not None and name != model_name(name):
        what = f"MLflow does not accept '{name}' as the name of a registered model"
        raise ConfigError(what, key="--as", fix=f"--as {model_name(name)}")
    if (model is None) == (best is None):
        raise ConfigError("name either MODEL or --best BENCHMARK", key="--best")
    if storage != Path(STORAGE) and not storage.is_dir():
        raise ConfigError("there is no such folder", where=storage, key="--storage", fix="check the path")
    if best is None:
        unused = {"--by": by, "--force": force}
        refuse_unused(unused, "is about the choice of --best, and MODEL names the model")
    by = by or "mean"
    champion = None if best is None else choose_champion(best, by=by)
    if champion is not None and best is not None:
        if not force:
            champion.check_above_chance(best)
        say(f"champion: {champion}")
        model = champion.path or champion.model
    assert model is not None
    tracker = Tracker.open()
    found, logged = _find(model, storage / "train", tracker)
    scored = champion or logged
    name = name or model_name(_default_name(model, found))
    with _staged(found) as folder:
        meta = read_meta(folder)
        if scored is not None and scored.weights != meta["tensor_digest"]:
            row = champion.model if champion is not None else model
            what = f"the weights here are not those that were scored as '{row}'"
            fix = "to promote the present weights, give the checkpoint's path"
            raise CheckpointError(what, where=found, key=model, fix=fix)
        terms = terms_of_use(found, meta)
        stored = store_calibrations(folder, calibration or [])
        carried = [f"{c.question}: {c}" for c in stored]
        limit = Familiarity.load(folder, weights=meta["tensor_digest"])
        benchmarks = [*benchmarks_in(storage), *([] if best is None else [best])]
        card = write_model_card(
            folder,
            CardContent(
                name=name, source=found, meta=meta, calibrations=stored, familiarity=limit,
                figures=figures_of(meta["tensor_digest"], benchmarks),
                chosen=None if champion is None else _chosen(champion, best, by),
            ),
        )  # fmt: skip
        beside = [*map(asdict, stored), *([asdict(limit.base)] if limit else [])]
        promoted, before = promote(
            tracker, model_files(folder), name=name, alias=alias, weights=meta["tensor_digest"],
            identity=digest([meta, *beside, card]), source=found, terms=terms_summary(found, meta),
            calibration="; ".join(carried) or "not calibrated", description=card_description(card),
        )  # fmt: skip
    say(f"{found} is version {promoted.version} of '{name}' in MLflow ({tracker.uri})")
    if before is not None and before != promoted.version:
        say(f"  before     '{alias}' was version {before}")
    say(f"  weights    sha256 {promoted.weights}")
    for text in carried or ["not calibrated (--calibration)"]:
        say(f"  calibrated {text}")
    show_terms(terms)
    say(f"use it: his2lip classify IMAGE --model {promoted.uri}")


def _chosen(champion: Champion, best: Path | None, by: str) -> str:
    """What the card says of the choice."""
    forced = (
        "" if champion.is_above_chance else "; it is not surely above chance, and was promoted by --force"
    )
    return f"chosen in {best} by {by}: {champion}{forced}"


def _find(model: str, runs: Path, tracker: Tracker) -> tuple[str, Scored | None]:
    """The path or name that loads the model, and its record in MLflow where it was found by a logged name."""
    from his2lip.models import BACKBONES, is_checkpoint
    from his2lip.tracking import scored_models

    for place in (Path(model), Path(model) / "best", runs / model / "best"):
        if is_checkpoint(place):
            return str(place), None
    if model in BACKBONES:
        return model, None
    logged = next((row for row in scored_models(tracker) if model in row.names), None)
    if logged is None:
        return model, None
    if logged.path is None:
        what = f"MLflow does not record where the weights of '{model}' are"
        fix = "promote them by their path (his2lip models blend writes a point of a sweep)"
        raise ModelError(what, key=model, fix=fix)
    return logged.path, logged


def _default_name(model: str, found: str) -> str:
    """The registered name where none is given: the run's, the one already registered, or the model's own."""
    from his2lip.models import is_registered, name_of, registered_name

    if Path(found).is_dir():
        return Path(name_of(found)[0]).absolute().name
    return registered_name(model) if is_registered(model) else model


@contextmanager
def _staged(model: str) -> Iterator[Path]:
    """The model's checkpoint without `resume`, in a temporary folder with the name that MLflow stores."""
    from his2lip.models import (
        CHECKPOINT_ARTIFACT,
        checkpoint_folder,
        copy_checkpoint,
        folder_of,
        load_model,
        read_steady,
        save_checkpoint,
        training_record,
    )

    with tempfile.TemporaryDirectory(prefix="his2lip-") as scratch:
        folder = Path(scratch) / CHECKPOINT_ARTIFACT

        def copy() -> None:
            with checkpoint_folder(model) as source:
                if source is not None:
                    copy_checkpoint(source, folder)
                else:
                    save_checkpoint(folder, load_model(model), meta={}, trained_on=training_record(model))

        read_steady(Path(folder_of(model)), copy)
        yield folder
