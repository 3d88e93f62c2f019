"""What a run is made of: its configuration, patches and captions, and the digest that names them together."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from his2lip.config import digest, resolved
from his2lip.data.captions import NOTE, CaptionBank
from his2lip.data.cards import Terms, strictest, terms_of
from his2lip.data.shards import LEARNING_ROLES, ShardSet, open_shards, resolve_split
from his2lip.errors import ConfigError
from his2lip.models import BACKBONES, is_checkpoint, read_meta
from his2lip.training.config import TrainConfig
from his2lip.training.run_directory import code_version


def open_data(config: TrainConfig) -> tuple[TrainConfig, ShardSet, CaptionBank]:
    """The shards and captions of a run, and its config with splits by name where it had their roles.

    Raises DatasetError where something is missing or cannot be read, ConfigError for a model that only its
    authors' package runs.
    """
    named = BACKBONES.get(config.model.backbone)
    if named is not None and named.frozen:
        what = f"'{named.name}' runs in its authors' package, as a frozen baseline"
        fix = "choose clip, plip, biomedclip or an open_clip name"
        raise ConfigError(what, where="model.backbone", key="model.backbone", fix=fix)
    shards = open_shards(config.data.shards)
    split = resolve_split(shards, config.data.split, roles=LEARNING_ROLES, key="data.split")
    select = config.data.select
    if select is not None:
        select = resolve_split(shards, select, roles=LEARNING_ROLES, key="data.select", or_else="null")
    data = config.data.model_copy(update={"split": split, "select": select})
    return config.model_copy(update={"data": data}), shards, _captions(config)


def _captions(config: TrainConfig) -> CaptionBank:
    """Our templates, a bank that was saved, or a folder in the released corpus's layout."""
    named = config.data.captions
    if named == "templates":
        bank = CaptionBank.templates()
    elif Path(named).is_dir():
        bank, _ = CaptionBank.from_folder(named)
    else:
        bank = CaptionBank.load(named)
    return replace(bank, missing=config.data.missing)


def identity(config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> dict[str, Any]:
    """What a run is made of, its digest (principle 7), and what else run.json records."""
    made_of: dict[str, Any] = {
        "config": config.identity(),
        "data": shards.digest,
        "captions": bank.digest,
    }
    if is_checkpoint(config.model.backbone):  # the weights count, not where they are
        made_of["config"]["model"]["backbone"] = read_meta(config.model.backbone)["tensor_digest"]
    return {
        "id": digest(made_of),
        "made_of": made_of,
        "config": resolved(config),
        "code_version": code_version(),
    }


def caption_notes(config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> list[str]:
    """What a user should know of the captions before hours go into training on them.

    What an import of a folder left out, how many patches have no captions of their own, and that the released
    sampling is approximated. Our own templates leave nothing to say.
    """
    notes = [] if bank.report is None else [str(bank.report)]
    if config.data.captions != "templates":
        pairs = shards.table(config.data.split, ["tissue", "biomarker"]).to_pylist()
        notes.append(str(bank.coverage((pair["tissue"], pair["biomarker"]) for pair in pairs)))
    if config.data.sampling == "released":
        notes.append(NOTE)
    return notes


def terms_of_run(config: TrainConfig, shards: ShardSet) -> Terms:
    """Terms of use of what this run makes: its data's, and those of a checkpoint that it starts from."""
    known = [terms_of(shards.info)]
    start = config.model.backbone
    if is_checkpoint(start) and (before := read_meta(start).get("terms")) is not None:
        known.append(Terms.from_json(before, where=start))
    return strictest(known)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same run for a process that stands in another folder, or knows no MLflow store."""
    from his2lip.models import local_name

    data = config.data.model_copy(
        update={
            "shards": _absolute(config.data.shards),
            "captions": config.data.captions
            if config.data.captions == "templates"
            else _absolute(config.data.captions),
        }
    )
    backbone = local_name(config.model.backbone, config.storage)
    if Path(backbone).exists():
        backbone = str(Path(backbone).absolute())
    model = config.model.model_copy(update={"backbone": backbone})
    return config.model_copy(update={"data": data, "model": model, "storage": _absolute(config.storage)})


def _absolute(place: str) -> str:
    return place if "://" in place else os.path.abspath(place)
