"""The check of a dataset as one HTML page: counts, pictures of each class, leaks, statistics and stains."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from his2lip.data.cards import terms_of
from his2lip.data.check import KINDS, NO_STAIN, CheckReport
from his2lip.data.images import LOOKS
from his2lip.data.shards import DatasetInfo
from his2lip.templates import render

_LINES = 100  # most problems, notes or quarantined files that are listed; the number of the others is shown
_BAR = 300  # px, width of the longest bar


def write_page(report: CheckReport, path: Path) -> None:
    """Writes the page, which needs no other file and no network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(report), encoding="utf-8")


def _page(report: CheckReport) -> str:
    info, terms = report.info, terms_of(report.info)
    licence = ", ".join(terms.datasets.values())
    return render(
        "report/dataset.html",
        title=f"Dataset check: {info.name}",
        info=info,
        summary=f"{info.rows:,} images, view {info.view}, licence {licence}, digest {info.digest[:12]}.",
        most=_LINES,
        problems=report.problems,
        notes=[*report.warnings, *terms.notes()],  # as the command prints them
        counts=list(_counts(info)),
        pictures=[
            (label, [(patch_id, base64.b64encode(data).decode()) for patch_id, data in kept])
            for label, kept in report.images.samples.items()
        ],
        leaks=[
            {
                "kind": KINDS[leak.kind][1],
                "splits": " and ".join(leak.splits),
                "count": leak.count,
                "problem": problem,
            }
            for leak, problem in report.leaks
        ],
        groups=sorted(report.images.groups.items()),
        looks=LOOKS,
        stains=[
            (stain, [seen[look] for look in (*LOOKS, None)])
            for stain, seen in sorted(
                report.images.stains.items(), key=lambda item: (item[0] == NO_STAIN, item)
            )
        ],
        quarantined=[f"{path}: {reason}" for path, reason in info.quarantined],
    )


def _counts(info: DatasetInfo) -> Iterator[dict[str, Any]]:
    """The number of images of each split and class, and the width in px of a bar that shows it."""
    most = max((n for labels in info.counts.values() for n in labels.values()), default=1)
    for split, labels in info.counts.items():
        role = info.roles.get(split, "")
        name = split if split == role else f"{split} ({role})"
        for label, n in labels.items():
            width = f"{max(_BAR * n / most, 1):.0f}"
            yield {"split": name, "label": label, "images": n, "width": width}
