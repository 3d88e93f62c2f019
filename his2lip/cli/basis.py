"""What answers rest on, on the terminal: what all answers share once, and the rest by question or image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from his2lip.cli.console import say

Row = Mapping[str, object]  # `image`, `question`, and the fields of a `serving.Basis`


def show_basis(rows: Sequence[Row]) -> None:
    """Prints every field of the basis of the answers in `rows`."""
    from his2lip.serving import BASIS_FIELDS

    say("These answers rest on:")
    for field in BASIS_FIELDS:
        parts = [str(row[field]).split("; ") for row in rows]
        shared = [part for part in parts[0] if all(part in own for own in parts)]
        title = field.replace("_", " ")
        if shared:
            say(f"  {title:<14} {'; '.join(shared)}")
            title = ""
        groups: dict[str, list[Row]] = defaultdict(list)
        for row, own in zip(rows, parts, strict=True):
            groups["; ".join(part for part in own if part not in shared)].append(row)
        for text, of in groups.items():
            if text:
                say(f"  {title:<14} {text} ({_which(of, rows)})")
                title = ""


def _which(some: Sequence[Row], rows: Sequence[Row]) -> str:
    """The rows that share a text: by their questions where these decide, else by their images."""
    questions = {str(row["question"]) for row in some}
    if len(some) == sum(str(row["question"]) in questions for row in rows):
        return ", ".join(sorted(questions))
    named = {str(row["image"]): Path(str(row["image"])).name for row in rows}
    unique = len(set(named.values())) == len(named)  # else two folders have an image of one name
    images = sorted({named[image] if unique else image for image in (str(row["image"]) for row in some)})
    return ", ".join(images[:3]) + (f" and {len(images) - 3} more" if len(images) > 3 else "")
