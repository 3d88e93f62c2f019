"""Caption banks: captions by (tissue type, biomarker, staining band or any), and how they are drawn."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from his2lip import taxonomy
from his2lip.config import digest
from his2lip.data.captions import templates as caption_templates
from his2lip.data.captions.biology import Pair
from his2lip.data.captions.corpus import CaptionReport, read_corpus
from his2lip.data.captions.templates import Key
from his2lip.data.captions.typical import typical_bank, typical_sentences
from his2lip.data.shards import STAININGS, Staining, id_key
from his2lip.errors import DatasetError
from his2lip.files import filesystem, write_file

Missing = Literal["drop", "template"]
Follow = Literal["follow", "ignore"]
Lines = Mapping[Pair, tuple[str, ...]]

ROLES = {"captions": "train", "held_out": "report"}  # the parts of a bank, and the role of each
NOTE = (
    "sampling: released gives each patch one caption for all epochs, in the order of sorted names. It "
    "approximates the authors' sampling: theirs followed the order of their folders, which is not published"
)
_PAIR = ("tissue", "biomarker")
OriginStatus = Literal["read", "passed by sampling", "imported", "template"]


class Origin(NamedTuple):
    """Where a caption comes from.

    status  `read` by a person, `passed by sampling` with its batch and not read, `imported`, or one of our
            templates
    source  who read it, the batch with its figures and model, or the folder
    """

    status: OriginStatus
    source: str


Place = tuple[str, str | None, str | None]  # a part of the bank or a staining band; tissue type; biomarker


class Subject(NamedTuple):
    """What a caption is about.

    tissue, biomarker  canonical names, or None
    staining           the patch's band; None: unknown
    described          a class of the dataset's own in words, which captions of our templates name
    """

    tissue: str | None
    biomarker: str | None
    staining: Staining | None = None
    described: str | None = None


@dataclass(frozen=True)
class CaptionBank:
    """Captions by pair of canonical names, and by staining band where the bank knows it.

    captions   drawn in training, whatever the staining
    held_out   never drawn in training, so that retrieval can be tested on them
    missing    `drop` leaves patches of a pair without captions out of training; `template` gives them our
               own templates' captions
    stained    by pair and staining band; they come before `captions`, which each of these pairs has too
    ours       whether these are our templates
    staining   of our templates: `follow` the patch's staining and class, or `ignore` both and tell what is
               typical of the pair
    report     of the import that made this bank, None for other banks
    origins    of the lines, in their order, by (`captions`, `held_out` or a staining band, tissue type,
               biomarker); empty where they are not known. They decide nothing in training
    """

    captions: Lines
    missing: Missing = "drop"
    held_out: Lines = field(default_factory=dict)
    stained: Mapping[Key, tuple[str, ...]] = field(default_factory=dict)
    ours: bool = False
    staining: Follow = "follow"
    report: CaptionReport | None = field(default=None, repr=False, compare=False)
    origins: Mapping[Place, tuple[Origin, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def templates(cls, staining: Follow = "follow") -> CaptionBank:
        """Our own captions of every pair of the taxonomy, also where tissue type or biomarker is missing."""
        if staining == "ignore":
            return cls(typical_bank(), ours=True, staining="ignore")
        return cls(caption_templates.bank(), stained=caption_templates.bank_by_staining(), ours=True)

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, missing: Missing = "drop"
    ) -> tuple[CaptionBank, CaptionReport]:
        """Reads the layout of the released corpus: TISSUE/BIOMARKER.txt, one caption per line, UTF-8.

        Whole seed families are held out (see `split_by_family`). Raises DatasetError where the folder is
        missing or has no caption at all.
        """
        split, report = read_corpus(Path(folder))
        bank = cls(split.train, missing, split.held_out, report=report)
        imported = Origin("imported", Path(folder).resolve().name)
        origins = {place: (imported,) * len(lines) for place, lines in bank.by_place().items()}
        return replace(bank, origins=origins), report

    @classmethod
    def load(cls, path: str | Path) -> CaptionBank:
        """Reads a bank that `save` wrote. Raises DatasetError for any other file, and for a changed one."""
        system, place = filesystem(path)
        try:
            with system.open_input_stream(place) as source:
                tree = json.loads(source.read())
            parts = [
                [((row["tissue"], row["biomarker"]), tuple(row.get(part, ()))) for row in tree["bank"]]
                for part in ROLES
            ]
            for rows in parts:
                _check_bank(rows, tree["missing"])
            captions, held_out = ({pair: lines for pair, lines in rows if lines} for rows in parts)
            bank = cls(captions, tree["missing"], held_out, _stained(tree.get("stained", []), captions))
            origins = _origins(tree, bank)
        except FileNotFoundError:
            raise DatasetError("this caption bank does not exist", where=path, fix="check the path") from None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            fix = "give a bank that his2lip data prepare or captions export wrote"
            raise DatasetError("this file is not a caption bank", where=path, fix=fix) from None
        if tree.get("digest", bank.content) != bank.content:  # banks of earlier versions have none
            what = "this caption bank is damaged or was edited: its content is not what its digest names"
            fix = "write it again with his2lip data prepare captions or captions export"
            raise DatasetError(what, where=path, key="digest", fix=fix)
        return replace(bank, origins=origins)

    def save(self, path: str | Path) -> None:
        """Writes both parts of the bank, with their roles, as indented JSON; whole or not at all."""
        rows = [
            {"tissue": t, "biomarker": b}
            | {part: list(lines[t, b]) for part, lines in self._parts().items() if (t, b) in lines}
            for t, b in dict.fromkeys((*self.captions, *self.held_out))
        ]
        tree: dict[str, Any] = {"missing": self.missing, "roles": ROLES, "digest": self.content, "bank": rows}
        if self.stained:
            names = ("tissue", "biomarker", "staining", "captions")
            tree["stained"] = [
                dict(zip(names, (*key, list(lines)), strict=True)) for key, lines in self.stained.items()
            ]
        if self.origins:
            tree |= self._origin_tree(rows, tree.get("stained", []))
        data = (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()
        write_file(*filesystem(path), data)

    @property
    def digest(self) -> str:
        """A digest of all captions that can be drawn or are held out: `content`, and templates if used."""
        templates = self.ours or self.missing == "template"
        if not templates and not self.stained:
            return self.content
        tree: dict[str, str] = {"missing": self.missing, "staining": self.staining}
        if not self.ours:
            tree["content"] = self.content
        if templates:
            tree["templates"] = _digest_of_templates(self.staining)
        return digest(tree)

    @property
    def content(self) -> str:
        """A digest of the bank's own captions and its rule for missing ones, for any order of pairs."""
        parts: dict[str, Any] = {
            name: sorted([t or "", b or "", list(lines)] for (t, b), lines in part.items())
            for name, part in self._parts().items()
            if part or name == "captions"
        }
        if self.stained:
            parts["stained"] = _rows_of(self.stained)
        return digest({"missing": self.missing, **parts})

    def covers(self, tissue: str | None, biomarker: str | None) -> bool:
        """Whether a patch of this pair gets a caption, from this bank or by its rule for missing ones."""
        return self.missing == "template" or bool(self.captions.get((tissue, biomarker)))

    def follows_staining(self, tissue: str | None, biomarker: str | None) -> bool:
        """Whether the captions of this pair depend on a patch's staining and class."""
        if self.staining == "ignore":
            return False
        if self.captions.get((tissue, biomarker)):
            return any((tissue, biomarker, band) in self.stained for band in STAININGS)
        return self.missing == "template"

    def draw(self, seed: int, epoch: int, patch_id: str, subject: Subject) -> str:
        """The caption of a patch in an epoch: a pure function of the arguments, uniform over the choices.

        Raises DatasetError for a pair that the bank does not cover.
        """
        key = hashlib.blake2b(f"{seed}/{epoch}/{patch_id}".encode(), digest_size=8).digest()
        return self.caption(int.from_bytes(key, "big"), subject)

    def caption(self, number: int, subject: Subject) -> str:
        """The caption with this number, modulo how many there are."""
        tissue, biomarker, staining, described = subject
        lines = self.lines(tissue, biomarker, staining)
        line = lines[number % len(lines)]
        if described is None or not self.follows_staining(tissue, biomarker):
            return line
        return caption_templates.with_class(line, described, number // len(lines))

    def distinct(self) -> list[str]:
        """Every caption of the bank that training can draw, once."""
        banks = (self.captions.values(), self.stained.values())
        return list(dict.fromkeys(line for bank in banks for lines in bank for line in lines))

    def drawn(self, pairs: Iterable[Pair]) -> list[str]:
        """Every caption that patches of these pairs can get, at any staining, once."""
        covered = [pair for pair in dict.fromkeys(pairs) if self.covers(*pair)]
        bands = (None, *STAININGS)
        return list(dict.fromkeys(x for pair in covered for band in bands for x in self.lines(*pair, band)))

    def coverage(self, pairs: Iterable[Pair]) -> Coverage:
        """How many of these patches have captions in this bank."""
        counts = Counter(pairs)
        missing = {pair: n for pair, n in counts.items() if not self.captions.get(pair)}
        unused = [pair for pair in self.captions if pair not in counts]
        return Coverage(sum(counts.values()), missing, unused, self.missing)

    def lines(
        self, tissue: str | None, biomarker: str | None, staining: Staining | None = None
    ) -> tuple[str, ...]:
        """The captions that patches of this pair and staining can get, in order.

        Raises DatasetError for a pair that the bank does not cover.
        """
        own = self.captions.get((tissue, biomarker))
        if own:
            return own if staining is None else self.stained.get((tissue, biomarker, staining), own)
        if self.missing == "template" and self.staining == "ignore":
            return typical_sentences(tissue, biomarker)
        if self.missing == "template":
            return caption_templates.sentences(tissue, biomarker, staining)
        raise DatasetError(
            f"there is no caption for tissue type {tissue} with biomarker {biomarker}",
            key="missing",
            fix="set missing: template, or missing: drop to leave such patches out",
        )

    def by_place(self) -> dict[Place, tuple[str, ...]]:
        """All lines of the bank, in their order, by part or staining band, tissue type and biomarker."""
        parts = {(name, *pair): lines for name, part in self._parts().items() for pair, lines in part.items()}
        return parts | {(band, t, b): lines for (t, b, band), lines in self.stained.items()}

    def _origin_tree(self, rows: list[dict[str, Any]], stained: list[dict[str, Any]]) -> dict[str, Any]:
        """Adds the numbers of the lines' origins to the rows of a saved bank; the numbered origins."""
        numbers: dict[Origin, int] = {}
        for row in (*rows, *stained):
            for part in ROLES:
                if part in row:
                    place = (row.get("staining", part), row["tissue"], row["biomarker"])
                    found = self.origins[place]
                    assert len(found) == len(row[part])
                    row[f"{part}_from"] = [numbers.setdefault(origin, len(numbers)) for origin in found]
        origins = [origin._asdict() for origin in numbers]
        return {"origins": origins, "origins_digest": digest([origins, _numbers_in(rows, stained)])}

    def _parts(self) -> dict[str, Lines]:
        return {"captions": self.captions, "held_out": self.held_out}


@cache
def _digest_of_templates(staining: Follow) -> str:
    """A digest of our templates, computed once per process: there are twenty thousand."""
    bank = CaptionBank.templates(staining)
    lines = sorted([t or "", b or "", list(lines)] for (t, b), lines in bank.captions.items())
    return digest({"captions": lines, "stained": _rows_of(bank.stained), "class": caption_templates.CLASS})


def _rows_of(stained: Mapping[Key, tuple[str, ...]]) -> list[list[Any]]:
    return sorted([t or "", b or "", band, list(lines)] for (t, b, band), lines in stained.items())


@dataclass(frozen=True)
class Coverage:
    """Numbers of all patches and of those whose pair has no caption, and the pairs that have no patch."""

    patches: int
    missing: Mapping[Pair, int]
    unused: list[Pair]
    rule: Missing

    def __str__(self) -> str:
        n = sum(self.missing.values())
        fate = "left out" if self.rule == "drop" else "captioned by templates"
        text = f"{self.patches:,} patches, {n:,} of them without a caption of their pair ({fate})"
        if self.missing:
            named = sorted(f"{t or '?'}/{b or '?'} {n:,}" for (t, b), n in self.missing.items())
            text += f": {', '.join(named[:6])}{', …' if len(named) > 6 else ''}"
        if self.unused:
            text += f"; captions of {len(self.unused)} pairs are not used, because no patch has that pair"
        return text


def _check_bank(rows: list[tuple[Pair, tuple[str, ...]]], missing: str) -> None:
    """Raises ValueError unless all names are canonical and no caption is empty, as `save` writes them."""
    for (tissue, biomarker), lines in rows:
        known = tissue in (*taxonomy.TISSUES, None) and biomarker in (*taxonomy.BIOMARKERS, None)
        if not known or not all(map(_is_text, lines)):
            raise ValueError(f"{tissue}, {biomarker}")
    if missing not in get_args(Missing):
        raise ValueError(missing)


def _stained(rows: list[dict[str, Any]], captions: Lines) -> dict[Key, tuple[str, ...]]:
    """The captions by staining band of a saved bank. Raises ValueError for a row that `save` cannot write."""
    found: dict[Key, tuple[str, ...]] = {}
    for row in rows:
        pair, band, lines = (row["tissue"], row["biomarker"]), row["staining"], tuple(row["captions"])
        if pair not in captions or band not in STAININGS or not lines or not all(map(_is_text, lines)):
            raise ValueError(f"{pair}, {band}")
        found[*pair, band] = lines
    return found


def _numbers_in(rows: list[dict[str, Any]], stained: list[dict[str, Any]]) -> list[list[int]]:
    """The numbers of the lines' origins, in the order of the rows of a saved bank."""
    return [row[f"{part}_from"] for row in (*rows, *stained) for part in ROLES if part in row]


def _origins(tree: dict[str, Any], bank: CaptionBank) -> dict[Place, tuple[Origin, ...]]:
    """The origins of a saved bank's lines; none in banks of earlier versions. Raises as `load` catches."""
    if "origins" not in tree:
        return {}
    rows, stained = tree["bank"], tree.get("stained", [])
    if tree["origins_digest"] != digest([tree["origins"], _numbers_in(rows, stained)]):
        raise ValueError("origins")
    known = [Origin(row["status"], row["source"]) for row in tree["origins"]]
    found = {
        (row.get("staining", part), row["tissue"], row["biomarker"]): tuple(
            known[n] for n in row[f"{part}_from"]
        )
        for row in (*rows, *stained)
        for part in ROLES
        if row.get(part)
    }
    if {k: len(v) for k, v in found.items()} != {k: len(v) for k, v in bank.by_place().items()}:
        raise ValueError("origins")
    return found


def _is_text(line: object) -> bool:
    return isinstance(line, str) and bool(line)


class RowCaptions:
    """One caption per patch for all epochs: the k-th patch of a pair, by id, gets its caption k modulo n.

    `draw` can replace `CaptionBank.draw`. Memory: 16 bytes per patch.
    """

    def __init__(self, bank: CaptionBank, patches: pa.Table) -> None:
        """`patches` has the columns patch_id, tissue and biomarker of a split."""
        self._bank = bank
        keys = [(name, "ascending") for name in (*_PAIR, "patch_id")]
        table = patches.take(pc.sort_indices(patches, sort_keys=keys))
        names = (table[name].fill_null("") for name in _PAIR)
        pairs = pc.binary_join_element_wise(*names, "\t").combine_chunks().dictionary_encode().indices
        _, first, run = np.unique(pairs.to_numpy(), return_index=True, return_inverse=True)
        place = np.arange(len(pairs)) - first[run]
        ids = np.array([id_key(i) for i in table["patch_id"].to_pylist()], dtype=np.uint64)
        order = np.argsort(ids)
        self._ids, self._place = ids[order], place[order]

    def draw(self, seed: int, epoch: int, patch_id: str, subject: Subject) -> str:
        """The caption of a patch; seed and epoch are ignored. Raises DatasetError as the bank does."""
        at = np.searchsorted(self._ids, np.uint64(id_key(patch_id)))
        return self._bank.caption(int(self._place[at]), subject)
