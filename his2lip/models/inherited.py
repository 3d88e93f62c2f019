"""What a model inherits: its data's terms of use, and the licence that its weights began under."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from his2lip.data.terms import Terms, strictest
from his2lip.models.catalogue import BACKBONES, Backbone
from his2lip.models.provenance import META

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
