"""Reading a caption corpus: `TISSUE/BIOMARKER.txt`, a caption a line, blank lines between seed families."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from his2lip import taxonomy
from his2lip.data.caption_families import FamilySplit, plain, split_by_family
from his2lip.data.caption_templates import Pair
from his2lip.data.listing import printable
from his2lip.errors import DatasetError, TaxonomyError


@dataclass(frozen=True, kw_only=True)
class CaptionReport:
    """What an import took and what it left out, with reasons. Files: read + left out = found."""

    found: int  # caption files
    read: int
    captions: int
    blank_lines: int
    repeated: int  # captions that their pair has already; they are kept, and drawn more often
    families: int
    families_held_out: int
    held_out: int  # captions, of families that training never sees
    left_out: list[tuple[str, str]] = field(default_factory=list)
    uncovered: list[tuple[str, str]] = field(default_factory=list)  # of the 84 pairs of MIHIC

    def __str__(self) -> str:
        lines = [
            f"{self.captions:,} captions from {self.read} of {self.found} files; "
            f"{self.blank_lines} blank lines left out, {self.repeated} repeated captions kept; "
            f"{len(self.uncovered)} of {len(mihic_pairs())} pairs have no caption",
            f"{self.held_out:,} captions ({self.families_held_out} of {self.families} seed families) are "
            f"held out for retrieval; training draws from the other {self.captions - self.held_out:,}",
        ]
        return "\n".join(lines + [f"left out {path}: {reason}" for path, reason in self.left_out])


def read_corpus(root: Path) -> tuple[FamilySplit, CaptionReport]:
    """Captions by pair of canonical names, split by seed family, and what was left out.

    A file that is nested deeper, empty, not UTF-8 or of an unknown class is left out with its reason.
    Raises DatasetError where the folder is missing or holds no caption at all.
    """
    if not root.is_dir():
        raise DatasetError("this folder of captions does not exist", where=root, mend="check the path")
    found = sorted(root.rglob("*.txt"))
    blocks: dict[Pair, list[list[str]]] = {}
    left_out, blank = [], 0
    for path in found:
        try:
            pair = _pair_of(path, root)
            lines = _lines(path)
        except DatasetError as error:
            left_out.append((printable(path.relative_to(root).as_posix()), printable(error.what)))
            continue
        blank += lines.count("")
        blocks.setdefault(pair, []).extend(_blocks(lines))
    if not blocks:
        raise DatasetError(
            "no caption could be read here", where=root, mend="lay it out TISSUE/BIOMARKER.txt"
        )
    split = split_by_family(blocks)
    captions = [(pair, text) for pair, own in blocks.items() for block in own for text in block]
    report = CaptionReport(
        found=len(found),
        read=len(found) - len(left_out),
        captions=len(captions),
        blank_lines=blank,
        repeated=len(captions) - len({(pair, plain(text)) for pair, text in captions}),
        families=split.families,
        families_held_out=split.families_held_out,
        held_out=sum(map(len, split.held_out.values())),
        left_out=left_out,
        uncovered=[p for p in mihic_pairs() if p not in blocks],
    )
    return split, report


def mihic_pairs() -> list[tuple[str, str]]:
    """The 84 pairs of tissue type and biomarker that MIHIC has."""
    return [(t, b) for t in taxonomy.TISSUES for b in taxonomy.MIHIC_BIOMARKERS]


def _blocks(lines: list[str]) -> list[list[str]]:
    """Lines between blank ones."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line:
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


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
