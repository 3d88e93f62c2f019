"""A checked dataset as one HTML page: counts, pictures of each class, leaks, statistics and stains."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from his2lip.data.cards import terms_of
from his2lip.data.check import KINDS, NO_STAIN, CheckReport
from his2lip.data.images import LOOKS
from his2lip.data.shards import DatasetInfo

_LINES = 100  # problems, warnings and quarantined files that are shown; how many more there are is said
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #e3e3e3 }
th:first-child, td:first-child, .text { text-align: left }
.bar { display: inline-block; height: .8em; background: #6b8fb5; vertical-align: baseline }
.problem { color: #a00 } .generated { background: #fff4d6; border-left: 4px solid #e0a800; padding: .6em 1em }
.note { color: #555; max-width: 70em }
figure { display: inline-block; margin: 0 1em 1em 0 } figure img { margin: 1px; height: 96px }
figcaption { font-weight: 600 }
.swatch { display: inline-block; width: 2em; height: .9em; border: 1px solid #ccc }
"""
_STAIN_NOTE = (
    "By colour deconvolution of each image. A patch without a positive cell looks like haematoxylin alone, "
    "and AEC and DAB are easily taken for each other; H&E is told surely."
)


def write_page(report: CheckReport, path: Path) -> None:
    """Writes the page, in which every name is escaped and nothing is fetched from elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_parts(report)) + "\n", encoding="utf-8")


def _parts(report: CheckReport) -> Iterator[str]:
    info = report.info
    title = html.escape(f"Dataset check: {info.name}")
    yield f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
    yield f"<style>{_STYLE}</style><h1>{title}</h1>"
    if info.generated:
        yield '<p class="generated">Generated patches, not real ones: they rehearse the dataset.</p>'
    licence = ", ".join(terms_of(info).datasets.values())
    said = f"{info.rows:,} images, view {info.view}, licence {licence}, digest {info.digest[:12]}."
    yield f"<p>{_e(said)}</p>"
    yield "<h2>Findings</h2>" + _findings(report)
    yield "<h2>Counts</h2>" + _counts(info)
    if report.images.samples:
        yield "<h2>Pictures</h2>" + "".join(_pictures(report))
    yield "<h2>Leaks between splits</h2>" + _leaks(report)
    yield "<h2>Images by split and class</h2>" + _statistics(report)
    yield "<h2>Stains</h2>" + _stains(report) + f'<p class="note">{_STAIN_NOTE}</p>'
    if info.quarantined:
        lines = [f"{path}: {reason}" for path, reason in info.quarantined]
        yield "<h2>Quarantined files</h2>" + _list(lines)
    yield "</html>"


def _findings(report: CheckReport) -> str:
    """Problems and notes, as the command prints them: the terms of use are among the notes."""
    notes = [*report.warnings, *terms_of(report.info).notes()]
    if not report.problems and not notes:
        return "<p>Nothing was found.</p>"
    said = f"Problems: {len(report.problems):,}. Notes: {len(notes):,}."
    return f"<p>{said}</p>{_list(report.problems, kind='problem')}{_list(notes)}"


def _counts(info: DatasetInfo) -> str:
    """A bar for each split and class, as long as its count."""
    most = max((n for labels in info.counts.values() for n in labels.values()), default=1)
    rows = []
    for split, labels in info.counts.items():
        role = info.roles.get(split, "")
        name = split if split == role else f"{split} ({role})"
        for label, n in labels.items():
            bar = f'<span class="bar" style="width:{max(300 * n / most, 1):.0f}px"></span>'
            rows.append((_e(name), _e(label), f"{n:,}", bar))
    return _table(("split", "class", "images", ""), rows, text=(1, 3))


def _pictures(report: CheckReport) -> Iterator[str]:
    for label, kept in report.images.samples.items():
        pictures = "".join(
            f'<img src="data:image/jpeg;base64,{base64.b64encode(data).decode()}" title="{_e(patch_id)}" '
            f'alt="{_e(label)}">'
            for patch_id, data in kept
        )
        yield f"<figure>{pictures}<figcaption>{_e(label)}</figcaption></figure>"


def _leaks(report: CheckReport) -> str:
    if not report.leaks:
        return "<p>No case, slide, region, file or picture stands in two splits.</p>"
    rows = [
        (KINDS[leak.kind][1].strip(","), _e(" and ".join(leak.splits)), f"{leak.count:,}", _verdict(problem))
        for leak, problem in report.leaks
    ]
    return _table(("what recurs", "in", "how many", ""), rows, text=(1, 3))


def _verdict(problem: bool) -> str:
    return '<span class="problem">problem</span>' if problem else "the card expects it, or it is unsure"


def _statistics(report: CheckReport) -> str:
    rows = []
    for (split, label), group in sorted(report.images.groups.items()):
        mean, deviation = group.brightness
        swatch = '<span class="swatch" style="background:rgb({},{},{})"></span>'.format(*group.rgb)
        colour = f"{swatch} {' '.join(map(str, group.rgb))}"
        figures = (
            f"{group.images:,}",
            group.size,
            colour,
            f"{mean:.0f} ± {deviation:.0f}",
            group.blank_percent,
        )
        rows.append((_e(split), _e(label), *figures))
    head = ("split", "class", "images", "size", "mean red, green, blue", "brightness", "blank")
    return _table(head, rows, text=(1,))


def _stains(report: CheckReport) -> str:
    columns = (*LOOKS, None)
    rows = [
        (_e(said), *(f"{looks[look]:,}" for look in columns))
        for said, looks in sorted(report.images.stains.items(), key=lambda item: (item[0] == NO_STAIN, item))
    ]
    return _table(("stain as the rows say", *(f"looks like {x}" for x in LOOKS), "blank"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[int] = ()) -> str:
    """Cells are HTML already; columns of `text` stand left."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = (' class="text"' if i in text else "" for i in range(len(cells)))
        drawn = "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{drawn}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(list(map(_e, head)), 'th')}</thead><tbody>{body}</tbody></table>"


def _list(lines: Sequence[str], *, kind: str = "") -> str:
    shown = [f'<li class="{kind}">{_e(line)}</li>' for line in lines[:_LINES]]
    more = f"<li>… and {len(lines) - _LINES:,} more</li>" if len(lines) > _LINES else ""
    return f"<ul>{''.join(shown)}{more}</ul>" if lines else ""


def _e(text: str) -> str:
    return html.escape(text, quote=True)
