"""What a checkpoint records of itself (`his2lip.json`) and the terms of use that follow; without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from his2lip.config import sealed, unsealed
from his2lip.data.cards import Terms, strictest
from his2lip.errors import CheckpointError
from his2lip.models.catalogue import BACKBONES, Backbone
from his2lip.models.training_data import TRAINING_DATA, training_data_of

META = "his2lip.json"
EXPORTED = "his2lip_provenance.json"  # beside the weights of an export that is no checkpoint
FORMAT = 1

T = TypeVar("T")
Similarity = Literal["cosine", "dot"]
Meta = Mapping[str, Any]  # the contents of his2lip.json; empty for a model without that file

# What remains true of a checkpoint when its weights are changed without training.
_KEPT_IN_BLENDS = ("config", "vocabularies", "data_digest", "captions_digest", "patch")
# Types of the entries that commands read; others are stored and shown as they are.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "similarity": str,
    "tensor_digest": str,
    "tokenizer": dict,
    "config": dict,
    "metrics": dict,
    "terms": dict,
    "trained_on": dict,
    "began_as": (str, list),
    TRAINING_DATA: list,
}
_ORIGINS = "began_as"  # key in his2lip.json
COPY = "copy the whole checkpoint directory again"


def read_meta(folder: str | Path) -> dict[str, Any]:
    """`his2lip.json` of a checkpoint: config, vocabularies, step, metrics, tensor digest, code version.

    A run may replace the checkpoint meanwhile. Raises CheckpointError where there is none, or it is damaged
    or of an unknown format.
    """
    return read_steady(Path(folder), lambda: _read_meta(current_folder(Path(folder))))


def _read_meta(folder: Path) -> dict[str, Any]:
    meta = read_json(folder / META)
    if meta.get("format") != FORMAT:
        what = f"checkpoint format {meta.get('format')} is unknown"
        raise CheckpointError(what, where=folder, key="format", fix="load it with the his2lip that wrote it")
    for key, kinds in _KINDS.items():
        if key in meta and not isinstance(meta[key], kinds):
            what = f"'{key}' in {META} is {type(meta[key]).__name__}"
            raise CheckpointError(what, where=folder, key=key, fix=COPY)
    try:
        return unsealed(meta)
    except ValueError as error:
        raise CheckpointError(f"{META} is damaged: {error}", where=folder, key="sha256", fix=COPY) from None


def exported_meta(name: str, meta: Meta, *, similarity: str) -> dict[str, Any]:
    """What an export of the model `name` records in `EXPORTED`: what is true of any copy of the weights."""
    return sealed(blended_meta(name, meta, name, meta) | {"similarity": similarity})


def read_exported(folder: Path) -> dict[str, Any]:
    """What `exported_meta` recorded in this folder; empty where nothing is. Raises CheckpointError."""
    if not (folder / EXPORTED).is_file():
        return {}
    try:
        return unsealed(read_json(folder / EXPORTED))
    except ValueError as error:
        what, fix = f"{EXPORTED} is damaged: {error}", "copy the whole folder again"
        raise CheckpointError(what, where=folder, key="sha256", fix=fix) from None


def similarity_of(recorded: Meta, *, where: Path) -> Similarity:
    """How features of a model are compared by what is recorded of it. Raises CheckpointError."""
    found: Any = recorded.get("similarity", "cosine")
    if found not in get_args(Similarity):
        what, fix = f"the similarity {found!r} is unknown", f"it is one of {', '.join(get_args(Similarity))}"
        raise CheckpointError(what, where=where, key="similarity", fix=fix)
    similarity: Similarity = found
    return similarity


def is_checkpoint(folder: str | Path) -> bool:
    """Whether `folder` is a checkpoint of his2lip: other tools' folders have no `his2lip.json`."""
    return any((place / META).is_file() for place in _places(Path(folder)))


def current_folder(folder: Path) -> Path:
    """The folder of a checkpoint; a process killed while it replaced one leaves it at `previous_folder`."""
    old = previous_folder(folder)
    return old if old.is_dir() and not folder.exists() else folder


def read_steady(folder: Path, read: Callable[[], T]) -> T:
    """What `read` makes of the checkpoint in `folder`, all of it of one checkpoint.

    A run, or a worker that outlives its command, may replace the checkpoint meanwhile; then it is read again.
    """
    while True:
        before = _seen(folder)
        try:
            found = read()
        except Exception:
            if _seen(folder) == before:
                raise
        else:
            if _seen(folder) == before:
                return found


def _seen(folder: Path) -> tuple[Path, int, bytes] | None:
    """Where the checkpoint is now, and its `his2lip.json` with the time of its writing; None: nowhere."""
    for place in _places(folder):
        with suppress(OSError), (place / META).open("rb") as file:
            return place, os.fstat(file.fileno()).st_ctime_ns, file.read()
    return None


def _places(folder: Path) -> tuple[Path, ...]:
    """Where a checkpoint can be, in the order in which `replacing` moves it."""
    return folder, previous_folder(folder), folder


def previous_folder(folder: Path) -> Path:
    """Where the present checkpoint is kept while a new one takes its place."""
    if folder.is_symlink():
        folder = Path(os.path.realpath(folder))
    return folder.parent / f".{folder.name}.former"


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a checkpoint's JSON file. Raises CheckpointError for a missing or damaged one."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"this is not a checkpoint: it has no {path.name}"
        raise CheckpointError(what, where=path.parent, key=path.name) from None
    except (OSError, ValueError) as error:
        what = f"{path.name} cannot be read: {error}"
        raise CheckpointError(what, where=path.parent, key=path.name) from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path.name} is not a mapping", where=path.parent, key=path.name)
    return tree


def terms_of_use(name: str, meta: Meta) -> list[str]:
    """The terms that a user of the model `name` must know, one sentence each; never empty."""
    terms = _strictest_terms(meta)
    sentences = []
    if terms is not None:
        sentences.append("trained on " + ", ".join(f"{name} ({of})" for name, of in terms.datasets.items()))
        sentences += terms.notes()
        sentences += [f"to be credited: {'; '.join(terms.attribution)}"] if terms.attribution else []
    elif "data_digest" in meta:
        sentences.append("trained on a dataset whose terms were not recorded")
    for backbone in _licensed_backbones(name, meta):
        sentences.append(f"its weights started from '{backbone.name}', licence {backbone.licence}")
    return sentences or ["no terms are recorded with this model; the terms of its authors apply"]


def terms_summary(name: str, meta: Meta) -> str:
    """The same in a few words for a table: licences of data and weights, and a ban of commercial use."""
    terms = _strictest_terms(meta)
    weights = [f"weights {b.licence}" for b in _licensed_backbones(name, meta)]
    data = [] if terms is None else [f"{dataset} {licence}" for dataset, licence in terms.datasets.items()]
    banned = ["not for commercial use"] if terms is not None and terms.commercial is False else []
    return "; ".join([*data, *banned, *weights])


def origins(name: str, meta: Meta) -> list[str]:
    """The models from which the weights of `name` descend, through any number of checkpoints; or itself."""
    tuned_from = meta.get("config", {}).get("model", {}).get("backbone")
    known = meta.get(_ORIGINS) or tuned_from or meta.get("name") or name
    return [known] if isinstance(known, str) else list(known)


def blended_meta(base: str, base_meta: Meta, tuned: str, tuned_meta: Meta) -> dict[str, Any]:
    """The provenance of a blend: trained as `tuned` was, under the strictest terms of both models."""
    kept: dict[str, Any] = {key: tuned_meta[key] for key in _KEPT_IN_BLENDS if key in tuned_meta}
    kept[_ORIGINS] = list(dict.fromkeys([*origins(base, base_meta), *origins(tuned, tuned_meta)]))
    kept[TRAINING_DATA] = [data.model_dump() for data in training_data_of(base_meta, tuned_meta)]
    terms = _strictest_terms(base_meta, tuned_meta)
    return kept | ({} if terms is None else {"terms": terms.to_json()})


def _strictest_terms(*metas: Meta) -> Terms | None:
    """The strictest terms of the data that checkpoints were trained on; None where none is recorded."""
    known = [Terms.from_json(meta["terms"], where=META) for meta in metas if meta.get("terms")]
    return strictest(known) if known else None


def _licensed_backbones(name: str, meta: Meta) -> Iterator[Backbone]:
    """The named backbones from which this model descends, by name or by the place they load from."""
    known = set(origins(name, meta))
    for backbone in BACKBONES.values():
        if {backbone.name, backbone.source, f"hf-hub:{backbone.repository}"} & known:
            yield backbone
