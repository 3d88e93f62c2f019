"""`his2lip data`: cards, preparing and generating datasets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from his2lip.commands.console import Progress, say, table
from his2lip.errors import DatasetError, first_line

if TYPE_CHECKING:
    from his2lip.data.shards import DatasetInfo


def list_datasets() -> None:
    """One row a card."""
    from his2lip.data.cards import list_cards, load_card

    rows = []
    for name in list_cards():
        card = load_card(name)
        units = "patches" if card.published.unit == "patch" else f"{card.published.unit}s"
        size = f"{card.published.images:,} {units}" if card.published.images else "unknown"
        rows.append((name, ", ".join(card.organ), size, card.licence.name, ", ".join(card.protocols)))
    table(("card", "organ", "published size", "licence", "protocols"), rows)


def prepare_dataset(
    card: str,
    root: Path,
    out: str,
    *,
    view: str | None,
    limit: int | None,
    unpack_to: Path | None,
    key_file: Path | None,
    names: Path | None,
) -> None:
    """Published files into shards, or the caption corpus into a bank; what was left out is said."""
    if card == "captions":
        given = {"--view": view, "--limit": limit, "--unpack-to": unpack_to}
        given |= {"--pseudonymise": key_file, "--names": names}
        _prepare_captions(root, out, unused=[option for option, value in given.items() if value is not None])
        return
    from his2lip.data.cards import load_card
    from his2lip.data.prepare import NameMap, prepare

    if (key_file is None) != (names is None):
        raise DatasetError("a key and a map of names go together", fix="give --pseudonymise and --names")
    map_of_names = NameMap.open(key_file, names, out=out) if key_file and names else None
    with Progress(card) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(f"{done:,} of {total:,} files")

        report = prepare(
            load_card(card),
            root,
            out,
            view=view,
            limit=limit,
            unpack_to=unpack_to,
            names=map_of_names,
            ray=True,
            progress=progress,
            tell=bar.update,
        )
    if report.root != Path(os.path.abspath(root)):
        say(f"unpacked in {report.root}; it may be removed")
    say_counts(report.info)
    say(f"{report.found:,} found, {report.read:,} read, {len(report.quarantined):,} quarantined")
    for reason, count in report.passed_over.items():
        say(f"  passed over {count:,}: {reason}")
    if report.left_out:
        say(f"  parts of files left out: {len(report.left_out):,}, such as {': '.join(report.left_out[0])}")
    for path, reason in report.quarantined[:10]:
        say(f"  quarantined {path}: {reason}")
    if len(report.quarantined) > 10:
        say(f"  … and {len(report.quarantined) - 10:,} more, listed in {out}/dataset.json")
    if names is not None:
        say(f"names and reasons: {names}; keep it and the key, and give neither away")
    say(f"shards: {out}")


def synthesize(out: str, *, datasets: Sequence[str] | None, seed: int, scale: float) -> None:
    """Generated twins, one folder a dataset; those that are there already, equal, are kept."""
    from his2lip.runtime import usable_cpus
    from his2lip.synthetic import process_mapper, twin_names, twin_view, write_twin

    names = list(datasets or twin_names())
    with process_mapper(usable_cpus()) as mapper, Progress("generated patches") as bar:
        count = 0

        def progress(new: int) -> None:
            nonlocal count
            count += new
            bar.update(f"{count:,}")

        for name in names:
            base, mark, query = out.partition("?") if "://" in out else (out, "", "")
            place = f"{base.rstrip('/')}/{name}{mark}{query}"
            if not _is_there(place, twin_view(seed, scale)):
                write_twin(name, place, seed=seed, scale=scale, mapper=mapper, progress=progress)
    say(f"shards: {out} ({', '.join(names)}; generated, not real)")


def rehearse(out: str, *, datasets: Sequence[str] | None, seed: int, scale: float) -> None:
    """Published layouts with generated pixels, one folder a dataset, and how to go on with each."""
    from his2lip.synthetic import layout_names, write_rehearsal

    if "://" in out or not out:
        raise DatasetError("a layout is written into a folder of this machine", where=f"--out '{out}'")
    names = list(datasets or layout_names())
    with Progress("generated images") as bar:
        drawn = 0

        def progress(new: int) -> None:
            nonlocal drawn
            drawn += new
            bar.update(f"{drawn:,}")

        for name in names:
            write_rehearsal(
                name, Path(out, name), seed=seed, each=max(3, round(3 * scale)), progress=progress
            )
    say(f"layouts: {out} ({', '.join(names)}; generated, not real)")
    say(f"rehearse: his2lip data prepare {names[0]} --root {Path(out, names[0])} --out DIR")


def _is_there(place: str, view: str) -> bool:
    """Whether this very twin stands at `place`. Raises DatasetError where another dataset does."""
    from his2lip.data.shards import open_shards

    try:
        info = open_shards(place).info
    except DatasetError:
        return False
    if info.generated and info.view == view:
        return True
    raise DatasetError("another dataset stands here", where=place, fix="choose another --out")


def say_counts(info: DatasetInfo) -> None:
    """Rows by split and label."""
    labels = sorted({label for counts in info.counts.values() for label in counts})
    rows = [
        (split, info.roles.get(split, ""), *(counts.get(label, 0) for label in labels), sum(counts.values()))
        for split, counts in info.counts.items()
    ]
    title = f"{info.name}{' (generated)' if info.generated else ''}"
    if len(labels) <= 8:
        table((title, "role", *labels, "all"), rows)
    else:
        table((title, "role", "all"), [(row[0], row[1], row[-1]) for row in rows])


def _prepare_captions(root: Path, out: str, *, unused: Sequence[str]) -> None:
    from his2lip.data.captions import CaptionBank

    if unused:
        raise DatasetError("captions are no images, and do not take this option", where=unused[0])
    if Path(out).is_dir():
        raise DatasetError("a caption bank is one file", where=out, fix="give a path such as captions.json")
    bank, report = CaptionBank.from_folder(root)
    try:
        bank.save(out)
    except OSError as error:
        raise DatasetError(f"nothing can be written here: {first_line(error)}", where=out) from None
    say(str(report))
    say(f"caption bank: {out}")
