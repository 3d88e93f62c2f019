"""Reads a published caption corpus, and splits it by seed family into training and held-out captions."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from his2lip import taxonomy
from his2lip.data.captions.biology import Pair
from his2lip.errors import DatasetError, TaxonomyError, first_line
from his2lip.files import is_litter, printable

HELD_OUT = 0.2  # share of a pair's families that are held out
_NEAR = 0.8  # Jaccard index of the words from which two captions of a pair belong to one family

Blocks = Mapping[Pair, Sequence[Sequence[str]]]
Lines = dict[Pair, tuple[str, ...]]


@dataclass(frozen=True)
class FamilySplit:
    """Captions by pair, in their order: those for training, and those held out from it."""

    train: Lines
    held_out: Lines
    families: int
    families_held_out: int


def split_by_family(blocks: Blocks, *, share: float = HELD_OUT, seed: int = 0) -> FamilySplit:
    """Holds out whole families: about `share` of each pair's families, and at least one of two or more.

    `blocks` has each pair's captions in the blocks that blank lines separate in its file. In the released
    corpus a block is a pathologist's sentence with its rewordings, so a block is a family. In a file without
    blank lines each caption is a family at first. Families are joined where they share a sentence, or, within
    a pair, nearly the same sentence. A family of several pairs is always trained on, because it cannot tell
    their biomarkers apart.
    """
    captions = [(pair, text) for pair, own in blocks.items() for block in own for text in block]
    family = _families(blocks, captions)
    pairs_of: dict[int, set[Pair]] = defaultdict(set)
    of_pair: dict[Pair, dict[int, str]] = defaultdict(dict)  # family -> its first sentence
    for (pair, text), number in zip(captions, family, strict=True):
        pairs_of[number].add(pair)
        of_pair[pair].setdefault(number, text)
    held: set[int] = set()
    for found in of_pair.values():
        own = sorted((n for n in found if len(pairs_of[n]) == 1), key=lambda n: _rank(seed, found[n]))
        count = min(max(round(share * len(found)), 1), len(found) - 1)
        held.update(own[:count])
    parts: tuple[dict[Pair, list[str]], ...] = (defaultdict(list), defaultdict(list))
    for (pair, text), number in zip(captions, family, strict=True):
        parts[number in held][pair].append(text)
    train, held_out = ({pair: tuple(lines) for pair, lines in part.items()} for part in parts)
    return FamilySplit(train, held_out, len(pairs_of), len(held))


def _families(blocks: Blocks, captions: Sequence[tuple[Pair, str]]) -> list[int]:
    """The family of each caption, by number."""
    from scipy.cluster.hierarchy import DisjointSet  # here: it takes 0.3 s to import

    families = DisjointSet(range(len(captions)))
    first = 0
    for own in blocks.values():
        start = first
        for block in own:
            if len(own) > 1:
                for number in range(first + 1, first + len(block)):
                    families.merge(first, number)
            first += len(block)
        for one, other in _near(captions[start:first]):
            families.merge(start + one, start + other)
    seen: dict[str, int] = {}
    for number, (_, text) in enumerate(captions):
        families.merge(number, seen.setdefault(plain(text), number))
    return [families[number] for number in range(len(captions))]


def _near(captions: Sequence[tuple[Pair, str]]) -> Iterator[tuple[int, int]]:
    """The places of any two captions, all of one pair, that share nearly all of their words."""
    words = [set(plain(text).split()) for _, text in captions]
    for i, one in enumerate(words):
        for j in range(i):
            other = words[j]
            if min(len(one), len(other)) < _NEAR * max(len(one), len(other)):
                continue
            if len(one & other) >= _NEAR * len(one | other):
                yield i, j


def plain(text: str) -> str:
    """The words of a sentence in lower case, which are the same for two spellings of it."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def _rank(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{plain(text)}".encode(), digest_size=16).digest()


@dataclass(frozen=True, kw_only=True)
class CaptionReport:
    """The outcome of an import. The numbers of files add up: read + left out = found."""

    found: int  # caption files
    read: int
    captions: int
    blank_lines: int
    repeated: int  # captions that repeat one of their pair; they are kept, and so drawn more often
    families: int
    families_held_out: int
    held_out: int  # captions of families that are held out
    left_out: list[tuple[str, str]] = field(default_factory=list)
    passed_over: int = 0  # hidden files and those that file managers write, which are not among `found`
    uncovered: list[tuple[str, str]] = field(default_factory=list)  # pairs of MIHIC without captions

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
    """Captions by pair of canonical names, split by seed family, and the report of the import.

    A file that is nested deeper, empty, not UTF-8 or of an unknown class is left out with the reason.
    Raises DatasetError where the folder is missing or has no caption at all.
    """
    if not root.is_dir():
        raise DatasetError("this folder of captions does not exist", where=root, fix="check the path")
    found, passed_over = _files(root)
    blocks: dict[Pair, list[list[str]]] = {}
    files: dict[Pair, Path] = {}
    left_out, blank = [], 0
    for path in found:
        try:
            pair = _pair_of(path, root)
            lines = _lines(path)
        except DatasetError as error:
            left_out.append((printable(path.relative_to(root).as_posix()), printable(error.what)))
            continue
        if pair in files:
            what = f"two files have the captions of one pair: {files[pair].name} and {path.name}"
            raise DatasetError(what, where=path.parent, key=path.name, fix="merge them into one file")
        files[pair] = path
        blank += lines.count("")
        blocks.setdefault(pair, []).extend(_blocks(lines))
    if not blocks:
        raise DatasetError("no caption could be read here", where=root, fix="lay it out TISSUE/BIOMARKER.txt")
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
        passed_over=passed_over,
        uncovered=[p for p in mihic_pairs() if p not in blocks],
    )
    return split, report


def _files(root: Path) -> tuple[list[Path], int]:
    """All files under `root` in sorted order, and the number of those that file managers write.

    Raises DatasetError for a folder that cannot be listed: its captions would be lost.
    """

    def refuse(error: OSError) -> None:
        what = f"this folder cannot be listed: {first_line(error)}"
        raise DatasetError(what, where=error.filename, key="--root", fix="check its rights")

    walked = os.walk(root, onerror=refuse)
    paths = sorted(Path(folder, name) for folder, _, names in walked for name in names)
    found = [path for path in paths if not any(map(is_litter, path.relative_to(root).parts))]
    return found, len(paths) - len(found)


def mihic_pairs() -> list[tuple[str, str]]:
    """The 84 pairs of tissue type and biomarker that MIHIC has."""
    return [(t, b) for t in taxonomy.TISSUES for b in taxonomy.MIHIC_BIOMARKERS]


def _blocks(lines: list[str]) -> list[list[str]]:
    """The lines, in blocks that blank lines separate."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line:
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _pair_of(path: Path, root: Path) -> Pair:
    """The pair of a file's path. Raises DatasetError, whose `what` is the reason, for any other path."""
    parts = path.relative_to(root).parts
    if path.suffix.lower() != ".txt":
        raise DatasetError(f"not a text file by its name ({path.suffix or 'no extension'})")
    if len(parts) != 2:
        raise DatasetError(_nested(path, root))
    try:
        return taxonomy.tissue(parts[0].strip()), taxonomy.biomarker(path.stem.strip())
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
        text = unicodedata.normalize("NFC", path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DatasetError(f"not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise DatasetError(f"unreadable: {error.strerror}") from None
    lines = [" ".join(line.split()) for line in text.removesuffix("\n").split("\n")]
    if not any(lines):
        raise DatasetError("empty: no caption in it")
    return lines
