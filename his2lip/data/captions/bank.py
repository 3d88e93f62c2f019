"""Caption banks: captions by (tissue type, biomarker), where they come from, and how they are drawn."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from his2lip import taxonomy
from his2lip.config import digest
from his2lip.data.captions import templates as caption_templates
from his2lip.data.captions.corpus import CaptionReport, read_corpus
from his2lip.data.captions.templates import Pair
from his2lip.data.shards import id_key
from his2lip.errors import DatasetError
from his2lip.files import filesystem, write_file

Missing = Literal["drop", "template"]
Lines = Mapping[Pair, tuple[str, ...]]

ROLES = {"captions": "train", "held_out": "report"}  # the parts of a bank, and the role of each
NOTE = (
    "sampling: released gives each patch one caption for all epochs, in the order of sorted names. It "
    "approximates the authors' sampling: theirs followed the order of their folders, which is not published"
)
_PAIR = ("tissue", "biomarker")


@dataclass(frozen=True)
class CaptionBank:
    """Captions by pair of canonical names.

    captions   drawn in training
    held_out   never drawn in training, so that retrieval can be tested on them
    missing    `drop` leaves patches of a pair without captions out of training; `template` gives them our
               own templates' captions
    report     of the import that made this bank, None for other banks
    """

    captions: Lines
    missing: Missing = "drop"
    held_out: Lines = field(default_factory=dict)
    report: CaptionReport | None = field(default=None, repr=False, compare=False)

    @classmethod
    def templates(cls) -> CaptionBank:
        """Our own captions of every pair of the taxonomy, also where tissue type or biomarker is missing."""
        return cls(caption_templates.bank())

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, missing: Missing = "drop"
    ) -> tuple[CaptionBank, CaptionReport]:
        """Reads the layout of the released corpus: TISSUE/BIOMARKER.txt, one caption per line, UTF-8.

        Whole seed families are held out (see `split_by_family`). Raises DatasetError where the folder is
        missing or has no caption at all.
        """
        split, report = read_corpus(Path(folder))
        return cls(split.train, missing, split.held_out, report), report

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
            bank = cls(captions, tree["missing"], held_out)
        except FileNotFoundError:
            raise DatasetError("this caption bank does not exist", where=path, fix="check the path") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            fix = "give a bank that his2lip data prepare or captions export wrote"
            raise DatasetError("this file is not a caption bank", where=path, fix=fix) from None
        if tree.get("digest", bank.digest) != bank.digest:  # banks of earlier versions have none
            what = "this caption bank is damaged or was edited: its content is not what its digest names"
            fix = "write it again with his2lip data prepare captions"
            raise DatasetError(what, where=path, key="digest", fix=fix)
        return bank

    def save(self, path: str | Path) -> None:
        """Writes both parts of the bank, with their roles, as indented JSON; whole or not at all."""
        rows = [
            {"tissue": t, "biomarker": b}
            | {part: list(lines[t, b]) for part, lines in self._parts().items() if (t, b) in lines}
            for t, b in dict.fromkeys((*self.captions, *self.held_out))
        ]
        tree = {"missing": self.missing, "roles": ROLES, "digest": self.digest, "bank": rows}
        data = (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()
        write_file(*filesystem(path), data)

    @property
    def digest(self) -> str:
        """A digest of all captions, their pairs, and the rule for missing ones, for any order of pairs."""
        parts = {
            name: sorted([t or "", b or "", list(lines)] for (t, b), lines in part.items())
            for name, part in self._parts().items()
            if part or name == "captions"
        }
        return digest({"missing": self.missing, **parts})

    def covers(self, tissue: str | None, biomarker: str | None) -> bool:
        """Whether a patch of this pair gets a caption, from this bank or by its rule for missing ones."""
        return self.missing == "template" or bool(self.captions.get((tissue, biomarker)))

    def draw(self, seed: int, epoch: int, patch_id: str, tissue: str | None, biomarker: str | None) -> str:
        """The caption of a patch in an epoch: a pure function of the arguments, uniform over the choices.

        Raises DatasetError for a pair that the bank does not cover.
        """
        lines = self.lines(tissue, biomarker)
        key = hashlib.blake2b(f"{seed}/{epoch}/{patch_id}".encode(), digest_size=8).digest()
        return lines[int.from_bytes(key, "big") % len(lines)]

    def coverage(self, pairs: Iterable[Pair]) -> Coverage:
        """How many of these patches have captions in this bank."""
        counts = Counter(pairs)
        missing = {pair: n for pair, n in counts.items() if not self.captions.get(pair)}
        unused = [pair for pair in self.captions if pair not in counts]
        return Coverage(sum(counts.values()), missing, unused, self.missing)

    def lines(self, tissue: str | None, biomarker: str | None) -> tuple[str, ...]:
        """The captions that patches of this pair can get, in order.

        Raises DatasetError for a pair that the bank does not cover.
        """
        own = self.captions.get((tissue, biomarker))
        if own:
            return own
        if self.missing == "template":
            return caption_templates.sentences(tissue, biomarker)
        raise DatasetError(
            f"there is no caption for tissue type {tissue} with biomarker {biomarker}",
            key="missing",
            fix="set missing: template, or missing: drop to leave such patches out",
        )

    def _parts(self) -> dict[str, Lines]:
        return {"captions": self.captions, "held_out": self.held_out}


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
        if not known or not all(isinstance(line, str) and line for line in lines):
            raise ValueError(f"{tissue}, {biomarker}")
    if missing not in get_args(Missing):
        raise ValueError(missing)


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

    def draw(self, seed: int, epoch: int, patch_id: str, tissue: str | None, biomarker: str | None) -> str:
        """The caption of a patch; seed and epoch are ignored. Raises DatasetError as the bank does."""
        lines = self._bank.lines(tissue, biomarker)
        at = np.searchsorted(self._ids, np.uint64(id_key(patch_id)))
        return lines[int(self._place[at]) % len(lines)]
