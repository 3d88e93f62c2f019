"""What a model inherits: its data's terms of use, and the licence that its weights began under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from his2lip.data.terms import Terms, strictest
from his2lip.models.catalogue import BACKBONES
from his2lip.models.provenance import META

Meta = Mapping[str, Any]  # a checkpoint's his2lip.json; empty for a model that is none of ours

# What of a checkpoint's provenance still holds when its weights are changed without training.
_LASTING = ("config", "vocabularies", "data_digest", "captions_digest", "patch", "began_as")


def inherited_terms(*metas: Meta) -> Terms | None:
    """The strictest terms of the data behind checkpoints; None where none of them names any."""
    known = [Terms.from_json(meta["terms"], where=META) for meta in metas if meta.get("terms")]
    return strictest(known) if known else None


def blended_meta(base: Meta, tuned: Meta) -> dict[str, Any]:
    """What a blend says of itself: trained as `tuned` was, under the strictest terms of both."""
    kept = {key: tuned[key] for key in _LASTING if key in tuned}
    terms = inherited_terms(base, tuned)
    return kept | ({} if terms is None else {"terms": terms.to_json()})


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
    backbone = BACKBONES.get(_began_as(name, meta))
    if backbone is not None:
        said.append(f"its weights began as '{backbone.name}', licence {backbone.licence}")
    return said or ["none are recorded with this model; its authors' hold"]


def in_brief(name: str, meta: Meta) -> str:
    """The same for a table's cell: the data's licences, whether they forbid commerce, the weights'."""
    terms, backbone = inherited_terms(meta), BACKBONES.get(_began_as(name, meta))
    data = [] if terms is None else [f"{dataset} {licence}" for dataset, licence in terms.datasets.items()]
    banned = ["not for commercial use"] if terms is not None and terms.commercial is False else []
    return "; ".join([*data, *banned, *([] if backbone is None else [f"weights {backbone.licence}"])])


def _began_as(name: str, meta: Meta) -> str:
    """The model whose weights this one's began as: the backbone that it was tuned from, or itself."""
    tuned_from = meta.get("config", {}).get("model", {}).get("backbone")
    return str(meta.get("began_as") or tuned_from or meta.get("name") or name)
