"""The inputs of a run: configuration, shards and captions, and the digest that identifies them together."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from his2lip.config import digest, recorded
from his2lip.data.captions import NOTE, CaptionBank, leave_out
from his2lip.data.cards import Terms, strictest, terms_of
from his2lip.data.shards import LEARNING_ROLES, ShardSet, open_shards, resolve_split, statement
from his2lip.errors import ConfigError, RunError
from his2lip.files import absolute
from his2lip.models import BACKBONES, folder_of, is_checkpoint, local_name, read_meta, weights_identity
from his2lip.resources import code_version
from his2lip.training.config import TEMPLATES, TrainConfig


def open_data(config: TrainConfig) -> tuple[TrainConfig, ShardSet, CaptionBank]:
    """The run's shards and captions, and its configuration with splits by name in place of roles.

    Raises DatasetError where something is missing or cannot be read, and ConfigError for a model that is only
    available in its authors' package.
    """
    named = BACKBONES.get(config.model.backbone)
    if named is not None and named.frozen:
        what = f"'{named.name}' is only available as a frozen baseline, in its authors' package"
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
    """The captions that training draws from."""
    return leave_out(*_whole_bank(config))[0]


def _whole_bank(config: TrainConfig) -> tuple[CaptionBank, float]:
    """The run's bank, and the share of it that training leaves out.

    The templates, a saved caption bank, or a folder in the layout of the released corpus.
    """
    named = config.data.captions
    if named == TEMPLATES:
        bank = CaptionBank.templates(config.data.staining)
    elif Path(named).is_dir():
        bank, _ = CaptionBank.from_folder(named)
    else:
        bank = CaptionBank.load(named)
    bank = replace(bank, missing=config.data.missing, staining=config.data.staining)
    return bank, config.data.select_captions


def select_captions(config: TrainConfig) -> list[tuple[str, str, str]]:
    """The captions that training leaves out (`data.select_captions`): text, tissue type, biomarker.

    Raises ConfigError where captions are asked for and no pair can give one.
    """
    bank, share = _whole_bank(config)
    _, left_out = leave_out(bank, share)
    if share and not left_out:
        raise ConfigError(
            "no pair of tissue type and biomarker has a caption that training can leave out",
            where=config.data.captions,
            key="data.select_captions",
            fix="give pairs two or more different captions, or set data.select_captions=0",
        )
    return [(text, *pair) for pair, lines in left_out.items() for text in lines]


def identity(
    config: TrainConfig, shards: ShardSet, bank: CaptionBank, *, validator: object = None
) -> dict[str, Any]:
    """The content of a new run.json: the run's inputs (`made_of`), their digest (`id`), and more.

    The digest is the identity of the run (design section 4, principle 7). The protocol and the prompts of
    one's own that a `validator` has (`own_protocol` and `own_prompts`, digests) are among the inputs where
    they choose the best checkpoint.
    """
    made_of: dict[str, Any] = {
        "config": config.identity(),
        "data": shards.digest,
        "captions": bank.digest,
    }
    # A folder counts by its contents, not by its path.
    made_of["config"]["model"]["backbone"] = weights_identity(config.model.backbone)
    if config.checkpoint.select_by != "loss":
        for key in ("prompts", "protocol"):
            if (own := getattr(validator, f"own_{key}", None)) is not None:
                made_of[key] = own
    return {
        "id": digest(made_of),
        "made_of": made_of,
        "config": recorded(config),
        "code_version": code_version(),
    }


def contents(config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> dict[tuple[str, str], str]:
    """(key, place) of shards, captions and first weights -> the digest of what this process finds there."""
    return {
        ("data.shards", config.data.shards): shards.digest,
        ("data.captions", config.data.captions): replace(bank, missing="drop", staining="follow").digest,
        ("model.backbone", config.model.backbone): weights_identity(config.model.backbone),
    }


def check_contents(
    expected: Mapping[tuple[str, str], str], config: TrainConfig, shards: ShardSet, bank: CaptionBank
) -> None:
    """Raises RunError where this process finds other `contents` than the command that started the run."""
    for (key, place), found in contents(config, shards, bank).items():
        if expected.get((key, place), found) != found:
            what = (
                f"the machine {socket.gethostname()} has other {key} here than the one that started the run"
            )
            raise RunError(what, where=place, key=key, fix="use a folder or URI that both see")


def places(config: TrainConfig) -> list[str]:
    """What workers read: the folders, files or names of shards, captions and first weights."""
    return [config.data.shards, config.data.captions, folder_of(config.model.backbone)]


def drawn_captions(config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> list[str]:
    """Every caption that the patches of the run's splits can get, once."""
    pair = ["tissue", "biomarker"]
    splits = filter(None, (config.data.split, config.data.select))
    tables = [shards.table(split, pair).group_by(pair, use_threads=False).aggregate([]) for split in splits]
    return bank.drawn((row["tissue"], row["biomarker"]) for table in tables for row in table.to_pylist())


def caption_notes(config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> list[str]:
    """Notes on the captions, for the user to read before the training starts.

    What the import of a folder left out, how many patches have no captions of their own, for how many the
    captions cannot know the staining, and that the released sampling is an approximation. There are no notes
    on templates that follow the staining.
    """
    notes = [] if bank.report is None else [str(bank.report)]
    if not bank.ours:
        pairs = shards.table(config.data.split, ["tissue", "biomarker"]).to_pylist()
        notes.append(str(bank.coverage((pair["tissue"], pair["biomarker"]) for pair in pairs)))
    notes += _blind_to_staining(config, shards, bank)
    if config.data.sampling == "released":
        notes.append(NOTE)
    return notes


def _blind_to_staining(config: TrainConfig, shards: ShardSet, bank: CaptionBank) -> list[str]:
    """For how many patches the captions cannot know the staining; and how many are labelled negative."""
    columns = ["tissue", "biomarker", "label", "score"]
    table = (
        shards.table(config.data.split, columns)
        .group_by(columns, use_threads=False)
        .aggregate([([], "count_all")])
    )
    blind = negative = 0
    for row in table.to_pylist():
        n = row.pop("count_all")
        pair = (row["tissue"], row["biomarker"])
        if bank.covers(*pair) and not bank.follows_staining(*pair):
            blind += n
            negative += n if statement(shards.info.card, **row).staining == "negative" else 0
    if not blind:
        return []
    note = (
        f"the captions of {blind:,} patches follow tissue type and biomarker only: they cannot know the "
        "staining, and may assert it where a patch has none or deny it where there is some"
    )
    return [note + (f"; {negative:,} of these patches are labelled negative" if negative else "")]


def terms_of_run(config: TrainConfig, shards: ShardSet) -> Terms:
    """Terms of use of the run's checkpoints: those of its data and of the checkpoint that it starts from."""
    known = [terms_of(shards.info)]
    start = config.model.backbone
    if is_checkpoint(start) and (before := read_meta(start).get("terms")) is not None:
        known.append(Terms.from_json(before, where=start))
    return strictest(known)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same run for a process in another folder, and without an MLflow store."""
    captions = config.data.captions
    found = {
        "shards": absolute(config.data.shards),
        "captions": captions if captions == TEMPLATES else absolute(captions),
    }
    data = config.data.model_copy(update=found)
    backbone = local_name(config.model.backbone, config.storage)
    model = config.model.model_copy(update={"backbone": backbone})
    return config.model_copy(update={"data": data, "model": model, "storage": absolute(config.storage)})
