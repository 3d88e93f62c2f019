"""Sentence frames: a finding becomes captions that also name the biomarker and the place."""

from __future__ import annotations

from collections.abc import Sequence

# {b}: the biomarker; {place}: the tissue type; {finding}: a whole sentence without its full stop. A capital
# letter begins the sentence.
FRAMES = (
    "Immunostaining for {b} in {place}: {finding}.",
    "A {b}-stained patch of {place}; {finding}.",
    "In {place} on {b} IHC, {finding}.",
    "{Place} stained for {b}, where {finding}.",
    "{Finding} ({b} IHC, {place}).",
    "An IHC image of {place}, {b}: {finding}.",
)


def framed(
    findings: Sequence[str], places: tuple[str, str], biomarker: str, *, each: int = len(FRAMES)
) -> tuple[str, ...]:
    """`each` captions of each finding, in frames that take turns, in a fixed order, without repetition."""
    lines = []
    for i, finding in enumerate(findings):
        for j in range(each):
            frame, place = FRAMES[(i * (each % len(FRAMES)) + j) % len(FRAMES)], places[(i + j) % 2]
            lines.append(
                frame.format(
                    b=biomarker,
                    place=place,
                    Place=_capital(place),
                    finding=finding,
                    Finding=_capital(finding),
                )
            )
    return tuple(dict.fromkeys(lines))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
