"""Caption banks: captions by (tissue type, biomarker), where they come from, and how one is drawn."""

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

ROLES = {"captions": "train", "held_out": "report"}  # the parts of a bank, and who may read each


@dataclass(frozen=True)
class CaptionBank:
    """Captions by pair of canonical names. `missing` says what a pair without captions gets.

    `drop`: nothing, its patches are left out of training; `template`: a caption of our own templates.
    `captions` are drawn in training; `held_out` never are, so that retrieval can be tested on them.
    """

    captions: Lines
    missing: Missing = "drop"
    held_out: Lines = field(default_factory=dict)
    report: CaptionReport | None = field(default=None, repr=False, compare=False)  # of an import just made

    @classmethod
    def templates(cls) -> CaptionBank:
        """Our own captions, for every pair of the taxonomy, with or without a tissue type or a biomarker."""
        return cls(caption_templates.bank())

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, missing: Missing = "drop"
    ) -> tuple[CaptionBank, CaptionReport]:
        """The released corpus's layout: TISSUE/BIOMARKER.txt, one caption a line, UTF-8.

        Captions are drawn from the part to train on; the held-out part is split off by seed family. Raises
        DatasetError where the folder is missing or holds no caption at all.
        """
        split, report = read_corpus(Path(folder))
        return cls(split.train, missing, split.held_out, report), report

    @classmethod
    def load(cls, path: str | Path) -> CaptionBank:
        """A bank that `save` wrote. Raises DatasetError for anything else."""
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
            return cls(captions, tree["missing"], held_out)
        except FileNotFoundError:
            raise DatasetError("this caption bank does not exist", where=path, fix="check the path") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DatasetError("this file is not a caption bank", where=path) from None

    def save(self, path: str | Path) -> None:
        """Writes the bank, both parts with their roles, as JSON that people can read; whole or not at all."""
        rows = [
            {"tissue": t, "biomarker": b}
            | {part: list(lines[t, b]) for part, lines in self._parts().items() if (t, b) in lines}
            for t, b in dict.fromkeys((*self.captions, *self.held_out))
        ]
        tree = {"missing": self.missing, "roles": ROLES, "bank": rows}
        data = (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()
        write_file(*filesystem(path), data)

    @property
    def digest(self) -> str:
        """Names every caption, its pair and the rule for missing ones, whatever the order of pairs."""
        parts = {
            name: sorted([t or "", b or "", list(lines)] for (t, b), lines in part.items())
            for name, part in self._parts().items()
            if part or name == "captions"
        }
        return digest({"missing": self.missing, **parts})

    def covers(self, tissue: str | None, biomarker: str | None) -> bool:
        """Whether a patch of this pair gets a caption, by this bank or by its rule for missing ones."""
        return self.missing == "template" or bool(self.captions.get((tissue, biomarker)))

    def draw(self, seed: int, epoch: int, patch_id: str, tissue: str | None, biomarker: str | None) -> str:
        """The caption of a patch in an epoch: a pure function of the arguments, even over the choices.

        Raises DatasetError for a pair that the bank does not cover.
        """
        lines = self.lines(tissue, biomarker)
        key = hashlib.blake2b(f"{seed}/{epoch}/{patch_id}".encode(), digest_size=8).digest()
        return lines[int.from_bytes(key, "big") % len(lines)]

    def coverage(self, pairs: Iterable[Pair]) -> Coverage:
        """How many of these patches have captions here; said before training starts."""
        counts = Counter(pairs)
        missing = {pair: n for pair, n in counts.items() if not self.captions.get(pair)}
        unused = [pair for pair in self.captions if pair not in counts]
        return Coverage(sum(counts.values()), missing, unused, self.missing)

    def lines(self, tissue: str | None, biomarker: str | None) -> tuple[str, ...]:
        """The captions that patches of this pair are given, in order.

        Raises DatasetError for a pair that the bank does not cover.
        """
        own = self.captions.get((tissue, biomarker))
        if own:
            return own
        if self.missing == "template":
            return caption_templates.sentences(tissue, biomarker)
        raise DatasetError(
            f"there is no caption for tissue type {tissue} with biomarker {biomarker}",
            fix="set missing: template, or missing: drop to leave such patches out",
        )

    def _parts(self) -> dict[str, Lines]:
        return {"captions": self.captions, "held_out": self.held_out}


@dataclass(frozen=True)
class Coverage:
    """Patches, those whose pair has no caption in the bank, and pairs of the bank without patches."""

    patches: int
    missing: Mapping[Pair, int]
    unused: list[Pair]
    rule: Missing

    def __str__(self) -> str:
        n = sum(self.missing.values())
        fate = "left out" if self.rule == "drop" else "captioned by templates"
        said = f"{self.patches:,} patches, {n:,} of them without a caption of their pair ({fate})"
        if self.missing:
            named = sorted(f"{t or '?'}/{b or '?'} {n:,}" for (t, b), n in self.missing.items())
            said += f": {', '.join(named[:6])}{', …' if len(named) > 6 else ''}"
        if self.unused:
            said += f"; captions of {len(self.unused)} pairs are not used, for lack of patches"
        return said


def _check_bank(rows: list[tuple[Pair, tuple[str, ...]]], missing: str) -> None:
    """Raises ValueError unless all is as `save` writes it: canonical names, captions that say something."""
    for (tissue, biomarker), lines in rows:
        known = tissue in (*taxonomy.TISSUES, None) and biomarker in (*taxonomy.BIOMARKERS, None)
        if not known or not all(isinstance(line, str) and line for line in lines):
            raise ValueError(f"{tissue}, {biomarker}")
    if missing not in get_args(Missing):
        raise ValueError(missing)


_PAIR = ("tissue", "biomarker")
NOTE = (
    "sampling: released gives each patch one caption for all epochs, in the order of sorted names; the "
    "authors' order was that of their folders, which nobody knows, so it approximates theirs"
)


class RowCaptions:
    """The k-th patch of a pair, by sorted patch ids, gets the pair's captions in turn: number k modulo n.

    Stands in for `CaptionBank.draw`. Memory: 16 bytes a patch.
    """

    def __init__(self, bank: CaptionBank, patches: pa.Table) -> None:
        """`patches`: the columns patch_id, tissue and biomarker of a split."""
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
        """The patch's one caption, whatever the seed and the epoch. Raises DatasetError as the bank does."""
        lines = self._bank.lines(tissue, biomarker)
        at = np.searchsorted(self._ids, np.uint64(id_key(patch_id)))
        return lines[int(self._place[at]) % len(lines)]
