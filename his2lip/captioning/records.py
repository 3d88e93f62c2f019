"""The records of a caption project: keys with their pictures and fields, rewordings, decisions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import Field

from his2lip import taxonomy
from his2lip.config import Config
from his2lip.data.shards import Staining

Act = Literal["accept", "revise", "reject", "cannot tell", "wrong label", "undo"]
ACTS: tuple[Act, ...] = get_args(Act)
Status = Literal["open", "accepted", "revised", "rejected", "cannot tell", "wrong label", "disputed"]


class Fields(Config):
    """What a seed states, from which its sentence is generated; empty where nothing is stated.

    The sentence of a seed is free text too: a reviewer may write another one.
    """

    compartment: str = ""
    """Where the chromogen lies: nuclear, membranous, cytoplasmic, …"""
    cells: str = ""
    """Which cells are stained, or could be."""
    share: Staining | None = None
    """How much is stained, as a staining band; null: not stated."""
    intensity: int | None = Field(default=None, ge=0, le=3)
    """0 none, 1 weak, 2 moderate, 3 strong; null: not stated."""
    pattern: str = ""
    """How it is distributed: diffuse, focal, granular, …"""
    background: str = ""
    """What else is seen: counterstain, artefacts, other structures."""


class Picture(Config):
    """A representative patch of a key, as an image file of the project."""

    patch: str
    """Its `patch_id` in the shards."""
    file: str
    """Path of the PNG, relative to the project, such as `images/tumor-ki67-1.png`."""
    case: str | None = None
    context_um: float | None = None
    """Microns of tissue around the patch that the picture shows; null: the patch only."""
    scale_bar_um: float | None = None
    """Length of the scale bar that is drawn into the picture; null: the scale is unknown."""


class Key(Config):
    """What one seed is about: a tissue type, a biomarker and a staining band, with its patches."""

    id: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Unique in the project, and part of file names: `key_id` makes it."""
    tissue: str | None
    biomarker: str | None
    staining: Staining | None = None
    """The staining band; null: any."""
    patches: int = Field(ge=0)
    """Patches of the prepared datasets that it covers."""
    pictures: tuple[Picture, ...] = ()
    fields: Fields = Fields()
    """Prefilled from the measured band and the biomarker's localisation."""
    text: str = Field(min_length=1)
    """The sentence that the prefilled fields generate."""

    @property
    def title(self) -> str:
        parts = (self.tissue or "tissue type unknown", self.biomarker or "biomarker unknown")
        return ", ".join((*parts, self.staining or "any staining"))


class Variant(Config):
    """A rewording of an approved seed, as a language model answered it."""

    id: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Unique in the project: `variant_id` makes it."""
    key: str
    """Id of the key whose seed was reworded."""
    seed: str
    """`seed_id` of the seed's text at that time."""
    text: str
    model: str
    prompt: str
    prompt_sha256: str
    time: str
    """When the answer came, UTC, ISO 8601."""
    tokens_in: int = Field(0, ge=0)
    tokens_out: int = Field(0, ge=0)
    refused: str | None = None
    """Why it was not accepted by validation; null: it passed."""


class Acceptance(Config):
    """When a batch of rewordings passes."""

    error_rate: float = 0.05
    """Share of wrong lines above which a batch should not pass, in (0, 1)."""
    confidence: float = 0.95
    """Probability with which a batch of more errors fails, in (0, 1)."""
    allowed: int = 0
    """Errors in the part that is read at which the batch still passes; more need a larger part."""

    def __str__(self) -> str:
        return f"error rate {self.error_rate:g}, confidence {self.confidence:g}, {self.allowed} allowed"


@dataclass(frozen=True)
class Judgement:
    """What a reviewer says about an item.

    text    the new text of `revise`
    fields  of the text of a revised seed; None where it is free
    note    for `wrong label`: what the reviewer takes it for
    """

    act: Act
    text: str | None = None
    fields: Fields | None = None
    note: str = ""


class Decision(Config):
    """One line of a reviewer's log. Its order is its sequence number; the time is for people only."""

    sequence: int = Field(ge=1)
    time: str
    """UTC, ISO 8601, by this machine's clock."""
    reviewer: str
    item: str
    """Id of a key (its seed) or of a variant."""
    act: Act
    before: str
    """The text that the reviewer saw."""
    after: str | None = None
    """The text that it approves; null for rejections, `cannot tell`, `wrong label` and undone decisions."""
    fields: Fields | None = None
    """The fields of a revised seed; null where its text is free."""
    blind: bool = False
    """A repeat, for agreement with oneself: it decides nothing."""
    settles: bool = False
    """Made while reviewers disagreed about this item; it replaces the decisions of all of `over`."""
    over: tuple[str, ...] = ()
    """The reviewers who disagreed then; those of a copy that is merged later are not among them. Empty in a
    decision of an earlier version that settles: then all with a lower number."""
    acceptance: Acceptance | None = None
    """For a rewording: when its batch passes, which the first such decision about the batch fixes."""
    note: str = ""
    """For `wrong label`: what the reviewer takes it for."""


def key_id(tissue: str | None, biomarker: str | None, staining: str | None) -> str:
    """The id of a key, such as `Immune-cells.CD3.strong`; `any` and `unknown` where a part is null."""
    for name, known in ((tissue, taxonomy.TISSUES), (biomarker, taxonomy.BIOMARKERS)):
        assert name is None or name in known, name
    parts = (tissue or "unknown", biomarker or "unknown", staining or "any")
    return ".".join(part.replace(" ", "-") for part in parts)


def seed_id(key: str, text: str) -> str:
    """Identifies the text of a seed, so that rewordings of an earlier text are recognised: 16 hex digits."""
    return hashlib.sha256(f"{key}\0{text}".encode()).hexdigest()[:16]


def variant_id(key: str, *parts: Any) -> str:
    """The id of a variant: its key's, and 12 hex digits of what it was made from (seed, model, number)."""
    told = "\0".join(map(str, parts)).encode()
    return f"{key}.{hashlib.sha256(told).hexdigest()[:12]}"
