"""From decisions to captions: which lines are exported, as a caption bank or in the released layout."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from his2lip.captioning.records import Key
from his2lip.captioning.sampling import Batch
from his2lip.captioning.state import Item, State
from his2lip.data.captions import CaptionBank, Origin, plain
from his2lip.data.shards import Staining
from his2lip.errors import DatasetError
from his2lip.files import filesystem, write_file


@dataclass(frozen=True)
class Line:
    """A caption that is exported."""

    key: Key
    text: str
    origin: Origin


@dataclass(frozen=True)
class Captions:
    """The lines of a project that are exported, seeds before their rewordings, and what was left out.

    left_out  reason -> number of seeds and rewordings
    """

    lines: tuple[Line, ...]
    left_out: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = Counter(line.origin.status for line in self.lines)
        told = ", ".join(f"{n:,} {status}" for status, n in counts.items())
        keys = len({line.key.id for line in self.lines})
        text = f"{len(self.lines):,} captions of {keys} keys: {told or 'none'}"
        if self.left_out:
            text += f"; left out: {', '.join(f'{n:,} {reason}' for reason, n in self.left_out.items())}"
        return text


def captions(state: State, batches: Iterable[Batch]) -> Captions:
    """The seeds and rewordings that may be trained on.

    A seed or rewording that someone accepted or revised was read. A rewording that nobody read is exported
    only where its batch passed, as such. Of lines that repeat another line of their key, the first is kept.
    """
    of_batch = {batch.name: batch for batch in batches}
    lines: list[Line] = []
    left_out: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    by_key: dict[str, list[Item]] = defaultdict(list)
    for item in state.variants:
        by_key[item.key.id].append(item)
    for seed in state.seeds:
        for item in (seed, *by_key[seed.id]):
            found = _line(item, state, of_batch)
            if isinstance(found, str):
                left_out[found] += 1
            elif (place := (item.key.id, plain(found.text))) in seen:
                left_out["repeated"] += 1
            else:
                seen.add(place)
                lines.append(found)
    return Captions(tuple(lines), dict(left_out))


def _line(item: Item, state: State, batches: dict[str, Batch]) -> Line | str:
    """The line of an item, or why it has none."""
    if not state.is_current(item):
        return "rewordings of a text that is no longer the approved one of its seed"
    if item.text is not None:
        who = ", ".join(sorted(item.standing))
        what = "" if item.variant is None else f"; reworded by {item.variant.model}"
        return Line(item.key, item.text, Origin("read", f"{item.status} by {who}{what}"))
    if item.status != "open":
        return item.status
    if item.variant is None:
        return "open seeds"
    batch = batches.get(item.batch or "")
    if batch is None or batch.verdict != "passed":
        verdict = "failed" if batch is not None and batch.verdict == "failed" else "is open"
        return f"unread rewordings of a batch that {verdict}"
    source = f"{batch}; reworded by {item.variant.model}"
    return Line(item.key, item.original, Origin("passed by sampling", source))


def to_bank(lines: Sequence[Line]) -> CaptionBank:
    """The lines as the caption bank that training reads.

    A pair that has captions of staining bands only gets our templates for patches of other bands or of an
    unknown one, since a sentence about strong staining would be untrue of them. Nothing is held out: a key
    has one seed, and its rewordings would be in both parts.
    """
    any_band: dict[tuple[str | None, str | None], list[Line]] = defaultdict(list)
    stained: dict[Key, list[Line]] = defaultdict(list)
    for line in lines:
        key = line.key
        (any_band[key.tissue, key.biomarker] if key.staining is None else stained[key]).append(line)
    texts = {pair: tuple(line.text for line in own) for pair, own in any_band.items()}
    origins = {("captions", *pair): tuple(line.origin for line in own) for pair, own in any_band.items()}
    templates = CaptionBank.templates()
    by_band: dict[tuple[str | None, str | None, Staining], tuple[str, ...]] = {}
    for key, own in stained.items():
        pair = (key.tissue, key.biomarker)
        if pair not in texts:
            texts[pair] = templates.lines(*pair)
            origins[("captions", *pair)] = (Origin("template", "his2lip"),) * len(texts[pair])
        assert key.staining is not None
        by_band[(*pair, key.staining)] = tuple(line.text for line in own)
        origins[(key.staining, *pair)] = tuple(line.origin for line in own)
    return CaptionBank(texts, stained=by_band, origins=origins)


def write_folder(lines: Sequence[Line], folder: Path) -> list[Line]:
    """Writes the layout of the released corpus, TISSUE/BIOMARKER.txt; returns the lines that it cannot have.

    Each seed and its rewordings are a block; blank lines separate blocks. The layout has no staining bands,
    and no place for an unknown tissue type or biomarker. Raises DatasetError where the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fix = "choose another --out"
        raise DatasetError("this folder is not empty", where=folder, key="--out", fix=fix)
    files: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    unplaced = []
    for line in lines:
        if line.key.tissue is None or line.key.biomarker is None:
            unplaced.append(line)
        else:
            files[line.key.tissue, line.key.biomarker][line.key.id].append(line.text)
    for (tissue, biomarker), blocks in files.items():
        text = "\n\n".join("\n".join(block) for block in blocks.values()) + "\n"
        write_file(*filesystem(folder / tissue / f"{biomarker}.txt"), text.encode())
    return unplaced
