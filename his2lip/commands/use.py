"""`his2lip classify` and `his2lip retrieve`: a chosen model on new images."""

from __future__ import annotations

import csv as csv_format
from collections.abc import Iterable, Sequence
from pathlib import Path

from his2lip.commands.console import say, table
from his2lip.errors import ConfigError, ImageError

_IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
_CACHE = "runs/cache"


def run_classify(images: Sequence[Path], *, model: str, prompts: str, csv: Path | None) -> None:
    """One row an image; images that cannot be read are named at the end and stop no other."""
    from his2lip.evaluation.prompts import PromptSet
    from his2lip.models import load_model
    from his2lip.serving import Classifier

    files = image_files(images)
    classifier = Classifier(load_model(model), prompts=PromptSet.load(prompts))
    rows: list[tuple[str, str, str, str, str]] = []
    unread: list[str] = []
    for file in files:
        try:
            found = classifier.classify([file])[0]
        except ImageError as error:
            unread.append(str(error))
            continue
        rows.append((str(file), found.tissue, f"{found.cosine:.3f}", f"{found.margin:.3f}", found.prompt))
    columns = ("image", "class", "cosine", "margin", "winning prompt")
    table(columns, rows)
    if csv is not None:
        _write_csv(csv, columns, rows)
    for line in unread:
        say(f"not read: {line}")
    if not rows:
        raise ImageError("none of these images could be read", mend="see the lines above")


def run_retrieve(query: str, *, model: str, index: str, top: int) -> None:
    """The patches most like the query; what was embedded before is read from the cache."""
    from his2lip.models import load_model
    from his2lip.serving import retrieve

    if Path(query).suffix.lower() in _IMAGES and not Path(query).is_file():
        raise ConfigError(
            "there is no such image file", where=query, mend="check the path, or write a sentence"
        )
    matches = retrieve(query, load_model(model), index, cache=_CACHE, top=top)
    rows = [(m.rank, m.patch_id, f"{m.similarity:.3f}", m.tissue, m.biomarker) for m in matches]
    table(("rank", "patch", "cosine", "tissue type", "biomarker"), rows)


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files given, and the image files inside the folders given, in order, each once."""
    files: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in _IMAGES)
            files |= dict.fromkeys(inside)
        elif path.is_file():
            files[path] = None
        else:
            raise ConfigError("there is no such file or folder", where=path, mend="check the path")
    if not files:
        raise ConfigError("there is no image here", where=", ".join(map(str, paths)))
    return list(files)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv_format.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    say(f"written to {path}")
