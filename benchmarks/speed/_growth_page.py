"""The result of `growth.py` as a table and a plot of docs/scale.md."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from _growth_parts import AXES, LABELS, LEAST_BYTES, PARTS

ROOT = Path(__file__).resolve().parents[2]
PAGE, PICTURE = ROOT / "docs/scale.md", ROOT / "docs/images/growth.png"
BEGIN, END = "<!-- growth.py writes this table -->\n", "<!-- end of the table -->\n"


def table(parts: dict[str, Any]) -> str:
    """The result as a table of Markdown, one row per part."""
    lines = [
        "| what | sizes | CPU time | power (last) | memory | power (last) | with children | linear |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for part, found in parts.items():
        rows, growth = found["sizes"], found["growth"]
        columns = [
            f"{PARTS[part].what} (`{part}`)",
            f"{_several(format(row['size'], ',') for row in rows)} {LABELS[PARTS[part].axis]}",
            f"{_several(_seconds(row[PARTS[part].time]) for row in rows)} s",
            _power(growth.get("time_power")),
            f"{_several(_mib(row['peak_bytes']) for row in rows)} MiB",
            _power(growth.get("memory_power")),
            f"{_mib(max(row['family_bytes'] for row in rows))} MiB",
            _verdict(growth),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def _several(words: Iterable[str]) -> str:
    return "; ".join(words)


def _seconds(seconds: float) -> str:
    digits = max(0, 1 - math.floor(math.log10(max(seconds, 1e-3))))
    return f"{seconds:,.{digits}f}"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f}"


def _power(found: dict[str, float] | None) -> str:
    return f"{found['all']:.2f} ({found['last']:.2f})" if found else "–"


def _verdict(growth: dict[str, Any]) -> str:
    kept = [name for name, is_linear in growth.get("linear", {}).items() if is_linear]
    return {2: "yes", 1: f"{kept[0] if kept else ''} only", 0: "no"}[len(kept)] if growth else "–"


def plot(parts: dict[str, Any], picture: Path) -> None:
    """Time and memory against size on logarithmic scales, with lines of the powers 1 and 2."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(AXES), figsize=(15, 7), constrained_layout=True)
    for column, axis in enumerate(AXES):
        own = {part: found for part, found in parts.items() if PARTS[part].axis == axis}
        for row, (key, unit, name) in enumerate(
            (
                ("time", 1.0, "seconds"),
                ("peak_bytes", 2.0**20, "MiB of the process"),
            )
        ):
            panel = axes[row, column]
            for part, found in own.items():
                values = PARTS[part].time if key == "time" else key
                sizes = [one["size"] for one in found["sizes"]]
                least = 1e-4 if row == 0 else LEAST_BYTES
                panel.loglog(
                    sizes, [max(one[values], least) / unit for one in found["sizes"]], "o-", label=part
                )
            if own:
                low, high = panel.get_xlim()
                bottom, top = panel.get_ylim()
                x = np.array([low, high])
                for exponent, style in ((1, ":"), (2, "--")):
                    panel.plot(x, bottom * (x / low) ** exponent, style, color="0.6", lw=1, zorder=0)
                panel.set_ylim(bottom, top)
                panel.set_xlim(low, high)
                panel.legend(fontsize=8)
            panel.set_xlabel(LABELS[axis])
            panel.set_ylabel(name)
    figure.suptitle("Dotted: in proportion to the size. Dashed: in proportion to its square.", fontsize=10)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=80)
    pyplot.close(figure)


def with_table(page: str, lines: str) -> str:
    """A page with the table in its place."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, "the page has no place for the table"
    assert end, "the page has no end of the table"
    return before + begin + lines + end + after
