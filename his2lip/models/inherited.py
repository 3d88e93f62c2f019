"""What a model inherits: the terms of the data that it learnt from, and the licence that its weights began under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from his2lip.data.terms import Terms, strictest
from his2lip.models.catalogue import BACKBONES
from his2lip.models.provenance import META

Meta = Mapping[str, Any]


def inherited_terms(*metas: Meta) -> Terms | None:
    """The strictest terms of the data behind checkpoints (their `his2lip.json`); None where none names any."""
    known = [Terms.from_json(meta["terms"], where=META) for meta in metas if meta.get("terms")]
    return strictest(known) if known else None


def began_as(name: str, meta: Meta) -> str:
    """The model whose weights this one's began as: the backbone that it was tuned from, or itself."""
    backbone = meta.get("config", {}).get("model", {}).get("backbone")
    return str(meta.get("began_as") or backbone or name)


def conditions(name: str, meta: Meta) -> list[str]:
    """What whoever uses the model `name` must know of its terms, a sentence each; never empty."""
    terms, backbone = inherited_terms(meta), BACKBONES.get(began_as(name, meta))
    said = [] if terms is None else [f"data: {note}" for note in terms.notes()]
    if terms is not None and terms.attribution:
        said.append(f"data: name {'; '.join(terms.attribution)}")
    if terms is None and meta.get("data_digest"):
        said.append("data: it was trained on a dataset whose terms were not recorded")
    if backbone is not None:
        said.append(f"weights: they began as '{backbone.name}', licence {backbone.licence}")
    return said or ["none are recorded with this model"]
