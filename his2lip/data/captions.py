"""Caption banks: captions by (tissue type, biomarker), where they come from, and how one is drawn."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from his2lip import taxonomy
from his2lip.config import digest
from his2lip.data import caption_templates
from his2lip.data.caption_templates import Pair
from his2lip.data.listing import printable
from his2lip.errors import DatasetError, TaxonomyError

Missing = Literal["drop", "template"]


@dataclass(frozen=True, kw_only=True)
class CaptionReport:
    """What an import took and what it left out, with reasons. Files: read + left out = found."""

    found: int  # caption files
    read: int
    captions: int
    blank_lines: int
    left_out: list[tuple[str, str]] = field(default_factory=list)
    uncovered: list[tuple[str, str]] = field(default_factory=list)  # of the 84 pairs of MIHIC

    def __str__(self) -> str:
        lines = [
            f"{self.captions:,} captions from {self.read} of {self.found} files; "
            f"{self.blank_lines} blank lines left out; {len(self.uncovered)} of 84 pairs have no caption"
        ]
        return "\n".join(lines + [f"left out {path}: {reason}" for path, reason in self.left_out])


@dataclass(frozen=True)
class CaptionBank:
    """Captions by pair of canonical names. `missing` says what a pair without captions gets.

    `drop`: nothing, its patches are left out of training; `template`: a caption of our own templates.
    """

    captions: Mapping[Pair, tuple[str, ...]]
    missing: Missing = "drop"

    @classmethod
    def templates(cls) -> CaptionBank:
        """Our own captions, for every pair of the taxonomy, with or without a tissue type or a biomarker."""
        return cls(caption_templates.bank())

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, missing: Missing = "drop"
    ) -> tuple[CaptionBank, CaptionReport]:
        """The released corpus's layout: TISSUE/BIOMARKER.txt, one caption a line, UTF-8.

        A file that is nested deeper, empty, not UTF-8 or of an unknown class is left out with its reason.
        Raises DatasetError where the folder is missing or holds no caption at all.
        """
        root = Path(folder)
        if not root.is_dir():
            raise DatasetError("this folder of captions does not exist", where=root, mend="check the path")
        found = sorted(root.rglob("*.txt"))
        captions: dict[Pair, tuple[str, ...]] = {}
        left_out, blank = [], 0
        for path in found:
            try:
                pair = _pair_of(path, root)
                lines = _lines(path)
            except DatasetError as error:
                left_out.append((printable(path.relative_to(root).as_posix()), printable(error.what)))
                continue
            kept = tuple(line for line in lines if line)
            blank += len(lines) - len(kept)
            captions[pair] = captions.get(pair, ()) + kept
        if not captions:
            raise DatasetError(
                "no caption could be read here", where=root, mend="lay it out TISSUE/BIOMARKER.txt"
            )
        report = CaptionReport(
            found=len(found),
            read=len(found) - len(left_out),
            captions=sum(map(len, captions.values())),
            blank_lines=blank,
            left_out=left_out,
            uncovered=[p for p in mihic_pairs() if p not in captions],
        )
        return cls(captions, missing), report

    @classmethod
    def load(cls, path: str | Path) -> CaptionBank:
        """A bank that `save` wrote. Raises DatasetError for anything else."""
        try:
            tree = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = [((row["tissue"], row["biomarker"]), tuple(row["captions"])) for row in tree["bank"]]
            _check_bank(rows, tree["missing"])
            return cls(dict(rows), tree["missing"])
        except FileNotFoundError:
            raise DatasetError(
                "this caption bank does not exist", where=path, mend="check the path"
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise DatasetError("this file is not a caption bank", where=path) from None

    def save(self, path: str | Path) -> None:
        """Writes the bank as JSON that people can read."""
        rows = [
            {"tissue": t, "biomarker": b, "captions": list(lines)} for (t, b), lines in self.captions.items()
        ]
        tree = {"missing": self.missing, "bank": rows}
        Path(path).write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def digest(self) -> str:
        """Names every caption, its pair and the rule for missing ones, whatever the order of pairs."""
        rows = sorted([t or "", b or "", list(lines)] for (t, b), lines in self.captions.items())
        return digest({"missing": self.missing, "bank": rows})

    def covers(self, tissue: str | None, biomarker: str | None) -> bool:
        """Whether a patch of this pair gets a caption, by this bank or by its rule for missing ones."""
        return self.missing == "template" or bool(self.captions.get((tissue, biomarker)))

    def draw(self, seed: int, epoch: int, patch_id: str, tissue: str | None, biomarker: str | None) -> str:
        """The caption of a patch in an epoch: a pure function of the arguments, even over the choices.

        Raises DatasetError for a pair that the bank does not cover.
        """
        lines = self.captions.get((tissue, biomarker)) or self._instead(tissue, biomarker)
        key = hashlib.blake2b(f"{seed}/{epoch}/{patch_id}".encode(), digest_size=8).digest()
        return lines[int.from_bytes(key, "big") % len(lines)]

    def coverage(self, pairs: Iterable[Pair]) -> Coverage:
        """How many of these patches have captions here; said before training starts."""
        counts = Counter(pairs)
        missing = {pair: n for pair, n in counts.items() if not self.captions.get(pair)}
        unused = [pair for pair in self.captions if pair not in counts]
        return Coverage(sum(counts.values()), missing, unused, self.missing)

    def _instead(self, tissue: str | None, biomarker: str | None) -> tuple[str, ...]:
        if self.missing == "template":
            return caption_templates.sentences(tissue, biomarker)
        raise DatasetError(
            f"there is no caption for tissue type {tissue} with biomarker {biomarker}",
            mend="set missing: template, or missing: drop to leave such patches out",
        )


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


def mihic_pairs() -> list[tuple[str, str]]:
    """The 84 pairs of tissue type and biomarker that MIHIC has."""
    return [(t, b) for t in taxonomy.TISSUES for b in taxonomy.MIHIC_BIOMARKERS]


def _check_bank(rows: list[tuple[Pair, tuple[str, ...]]], missing: str) -> None:
    """Raises ValueError unless all is as `save` writes it: canonical names, captions that say something."""
    for (tissue, biomarker), lines in rows:
        known = tissue in (*taxonomy.TISSUES, None) and biomarker in (*taxonomy.BIOMARKERS, None)
        if not known or not all(isinstance(line, str) and line for line in lines):
            raise ValueError(f"{tissue}, {biomarker}")
    if missing not in get_args(Missing):
        raise ValueError(missing)


def _pair_of(path: Path, root: Path) -> Pair:
    """The pair that a file's place means; DatasetError (its `what` is the reason) where it means none."""
    parts = path.relative_to(root).parts
    if len(parts) != 2:
        raise DatasetError(_nested(path, root))
    try:
        return taxonomy.tissue(parts[0]), taxonomy.biomarker(path.stem)
    except TaxonomyError as error:
        raise DatasetError(error.what) from None


def _nested(path: Path, root: Path) -> str:
    twin = root / path.parent.name / path.name
    if twin != path and twin.is_file():
        same = "the same as" if twin.read_bytes() == path.read_bytes() else "another version of"
        return f"nested, and {same} {twin.relative_to(root)}"
    return "not at TISSUE/BIOMARKER.txt"


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise DatasetError(f"unreadable: {error.strerror}") from None
    lines = [" ".join(line.split()) for line in text.removesuffix("\n").split("\n")]
    if not any(lines):
        raise DatasetError("empty: no caption in it")
    return lines
