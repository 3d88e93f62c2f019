"""Terms of use of datasets, and of what is derived from them, such as shards and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from his2lip.config import validate
from his2lip.data.cards.card import Licence
from his2lip.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of one dataset, or the strictest of several. None: unknown.

    datasets     name -> licence
    commercial   whether commercial use is allowed
    derivatives  whether derived works are allowed
    share_alike  whether derived works must be shared under the same licence
    attribution  citations that must be given
    """

    datasets: dict[str, str]
    commercial: bool | None = True
    derivatives: bool | None = True
    share_alike: bool | None = False
    attribution: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The value of `terms` in a checkpoint's his2lip.json."""
        return asdict(self) | {"attribution": list(self.attribution)}

    @classmethod
    def from_json(cls, tree: Any, *, where: str) -> Terms:
        """Reads what `to_json` returned. Raises DatasetError for anything else."""
        try:
            return cls(**(tree | {"attribution": tuple(tree["attribution"])}))
        except (TypeError, KeyError) as error:
            what = f"the terms of use cannot be read: {error}"
            raise DatasetError(what, where=where, key="terms") from None

    def notes(self) -> list[str]:
        """Restrictions to know before the data are used, and terms that are unknown; one sentence each."""
        named = ", ".join(f"{name}: {licence}" for name, licence in self.datasets.items())
        unknown = [
            what
            for what, value in (("commercial use", self.commercial), ("derived works", self.derivatives))
            if value is None
        ]
        notes = []
        if unknown:
            uses = " and ".join(unknown)
            notes.append(f"it is not known whether the licence allows {uses} ({named})")
        if self.derivatives is False:
            notes.append(f"the licence forbids derived works, and a trained model may be one ({named})")
        if self.commercial is False:
            notes.append(f"the licence forbids commercial use, also of models trained on the data ({named})")
        if self.share_alike:
            notes.append(f"works derived from these data must be shared under the same licence ({named})")
        return notes


class _Prepared(Protocol):
    """The fields of `data.shards.DatasetInfo` that `terms_of` reads."""

    @property
    def name(self) -> str: ...
    @property
    def card(self) -> Mapping[str, Any]: ...
    @property
    def generated(self) -> bool: ...
    @property
    def origin(self) -> str: ...


def terms_of(info: _Prepared) -> Terms:
    """The terms of a prepared dataset, from the card in its dataset.json. Generated images have none."""
    if info.generated:
        return Terms(datasets={info.origin: "none, generated"})
    return terms_of_card(info.name, info.card)


def terms_of_card(name: str, card: Mapping[str, Any]) -> Terms:
    """The terms that a dataset's card states; `card` is the card as plain JSON values."""
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
    """The terms of what is derived from several datasets: per field, forbidden over unknown over allowed."""
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
