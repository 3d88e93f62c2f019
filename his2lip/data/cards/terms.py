"""Terms of use that travel: what datasets' licences ask of whoever uses what was made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from his2lip.config import validate
from his2lip.data.cards.card import Licence
from his2lip.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of one dataset, or the strictest of several; None where they are not known.

    `datasets` is name -> licence; `attribution` are the citations that must be given.
    """

    datasets: dict[str, str]
    commercial: bool | None = True
    derivatives: bool | None = True
    share_alike: bool | None = False
    attribution: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it stands in a checkpoint's his2lip.json, under `terms`."""
        return asdict(self) | {"attribution": list(self.attribution)}

    @classmethod
    def from_json(cls, tree: Any, *, where: str) -> Terms:
        """`to_json` read back. Raises DatasetError for anything else."""
        try:
            return cls(**(tree | {"attribution": tuple(tree["attribution"])}))
        except (TypeError, KeyError) as error:
            raise DatasetError(f"these terms of use cannot be read: {error}", where=where) from None

    def notes(self) -> list[str]:
        """What someone should know before making anything of these data, a sentence each."""
        named = ", ".join(f"{name}: {licence}" for name, licence in self.datasets.items())
        unknown = [
            what
            for what, value in (("commercial use", self.commercial), ("derived works", self.derivatives))
            if value is None
        ]
        said = []
        if unknown:
            said.append(f"whether {' and '.join(unknown)} may be made of these data is not known ({named})")
        if self.derivatives is False:
            said.append(f"the licence forbids derived works, which a trained model may be ({named})")
        if self.commercial is False:
            said.append(f"the licence forbids commercial use, of what is trained on it too ({named})")
        if self.share_alike:
            said.append(f"what is made of these data must be shared under the same licence ({named})")
        return said


class _Prepared(Protocol):
    """What `terms_of` reads of a prepared dataset's description (`data.shards.DatasetInfo`)."""

    @property
    def name(self) -> str: ...
    @property
    def card(self) -> Mapping[str, Any]: ...
    @property
    def generated(self) -> bool: ...


def terms_of(info: _Prepared) -> Terms:
    """The terms of a prepared dataset, from the card in its dataset.json. Generated pixels have none."""
    if info.generated:
        return Terms(datasets={f"{info.name}-generated": "none, generated"})
    return terms_of_card(info.name, info.card)


def terms_of_card(name: str, card: Mapping[str, Any]) -> Terms:
    """The terms that a dataset's card states, whatever was made of the dataset."""
    licence = validate(Licence, card.get("licence", {}), where=f"{name}, licence")
    cite = licence.attribution is not False
    return Terms(
        datasets={name: licence.name},
        commercial=licence.commercial_use,
        derivatives=licence.derivatives,
        share_alike=licence.share_alike,
        attribution=(str(card.get("citation") or name),) if cite else (),
    )


def strictest(terms: Iterable[Terms]) -> Terms:
    """What holds where all of `terms` hold at once: a ban wins over the unknown, the unknown over a leave."""
    terms = list(terms)
    return Terms(
        datasets={name: licence for one in terms for name, licence in one.datasets.items()},
        commercial=_worst([one.commercial for one in terms], bad=False),
        derivatives=_worst([one.derivatives for one in terms], bad=False),
        share_alike=_worst([one.share_alike for one in terms], bad=True),
        attribution=tuple(dict.fromkeys(cite for one in terms for cite in one.attribution)),
    )


def _worst(values: Sequence[bool | None], *, bad: bool) -> bool | None:
    return bad if bad in values else None if None in values else not bad
