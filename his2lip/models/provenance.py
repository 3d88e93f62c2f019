"""What a checkpoint directory says of itself, read without torch or open_clip."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from his2lip.data.cards import Terms, strictest
from his2lip.errors import CheckpointError
from his2lip.models.catalogue import BACKBONES, Backbone

META = "his2lip.json"
FORMAT = 1


def read_meta(folder: str | Path) -> dict[str, Any]:
    """`his2lip.json` of a checkpoint: config, vocabularies, step, metrics, tensor digest, code version."""
    folder = settled(Path(folder))
    meta = read_json(folder / META)
    if meta.get("format") != FORMAT:
        fix = "load it with the his2lip that wrote it"
        raise CheckpointError(f"checkpoint format {meta.get('format')} is unknown", where=folder, fix=fix)
    return meta


def is_checkpoint(folder: str | Path) -> bool:
    """Whether `folder` holds one of our checkpoints (a foreign one has no `his2lip.json`)."""
    return (settled(Path(folder)) / META).is_file()


def settled(folder: Path) -> Path:
    """Where the checkpoint is: a process killed between two renames leaves it under its former name."""
    old = former(folder)
    return old if old.is_dir() and not folder.exists() else folder


def former(folder: Path) -> Path:
    """Where the checkpoint that is being replaced waits."""
    return folder.parent / f".{folder.name}.former"


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a checkpoint's JSON file. Raises CheckpointError for a missing or broken one."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"this is not a checkpoint: it has no {path.name}", where=path.parent) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}", where=path.parent) from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path.name} is not a mapping", where=path.parent)
    return tree


Meta = Mapping[str, Any]  # a checkpoint's his2lip.json; empty for a model that is none of ours

# What of a checkpoint's provenance still holds when its weights are changed without training.
_LASTING = ("config", "vocabularies", "data_digest", "captions_digest", "patch")


def inherited_terms(*metas: Meta) -> Terms | None:
    """The strictest terms of the data behind checkpoints; None where none of them names any."""
    known = [Terms.from_json(meta["terms"], where=META) for meta in metas if meta.get("terms")]
    return strictest(known) if known else None


def blended_meta(base: str, of_base: Meta, tuned: str, of_tuned: Meta) -> dict[str, Any]:
    """What a blend says of itself: trained as `tuned` was, under the strictest terms of both."""
    kept: dict[str, Any] = {key: of_tuned[key] for key in _LASTING if key in of_tuned}
    kept["began_as"] = list(dict.fromkeys([*began_as(base, of_base), *began_as(tuned, of_tuned)]))
    terms = inherited_terms(of_base, of_tuned)
    return kept | ({} if terms is None else {"terms": terms.to_json()})


def began_as(name: str, meta: Meta) -> list[str]:
    """The models whose weights those of `name` began as, through any number of checkpoints; else itself."""
    tuned_from = meta.get("config", {}).get("model", {}).get("backbone")
    known = meta.get("began_as") or tuned_from or meta.get("name") or name
    return [known] if isinstance(known, str) else list(known)


def conditions(name: str, meta: Meta) -> list[str]:
    """What whoever uses the model `name` must know of its terms, a sentence each; never empty."""
    terms = inherited_terms(meta)
    said = []
    if terms is not None:
        said.append("trained on " + ", ".join(f"{name} ({of})" for name, of in terms.datasets.items()))
        said += terms.notes()
        said += [f"to be credited: {'; '.join(terms.attribution)}"] if terms.attribution else []
    elif "data_digest" in meta:
        said.append("trained on a dataset whose terms were not recorded")
    for backbone in _backbones(name, meta):
        said.append(f"its weights began as '{backbone.name}', licence {backbone.licence}")
    return said or ["none are recorded with this model; its authors' hold"]


def in_brief(name: str, meta: Meta) -> str:
    """The same for a table's cell: the data's licences, whether they forbid commerce, the weights'."""
    terms, weights = inherited_terms(meta), [f"weights {b.licence}" for b in _backbones(name, meta)]
    data = [] if terms is None else [f"{dataset} {licence}" for dataset, licence in terms.datasets.items()]
    banned = ["not for commercial use"] if terms is not None and terms.commercial is False else []
    return "; ".join([*data, *banned, *weights])


def _backbones(name: str, meta: Meta) -> Iterator[Backbone]:
    """The models of a known licence that this one began as, by their own names or where they load from."""
    origins = began_as(name, meta)
    for backbone in BACKBONES.values():
        hub = f"hf-hub:{backbone.repository}"
        if {backbone.name, backbone.source, hub} & set(origins):
            yield backbone
