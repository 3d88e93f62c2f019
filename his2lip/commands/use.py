"""`his2lip classify`, `calibrate` and `retrieve`: a chosen model on new images."""

from __future__ import annotations

import csv as csv_format
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from his2lip.commands.console import percent, say, table
from his2lip.commands.slides import SlideOptions, heated, read_slides, split_slides
from his2lip.errors import ConfigError, ImageError

if TYPE_CHECKING:
    import numpy as np

    from his2lip.serving import Answer

_SLIDE_FILES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm")  # OpenSlide's
_CACHE = "runs/cache"
_SCORING = {"cosine": "cosine", "dot": "dot product"}


def run_classify(
    images: Sequence[Path],
    *,
    model: str,
    prompts: str,
    biomarker: str | None,
    guess_biomarker: bool,
    calibration: Sequence[Path],
    slides: SlideOptions,
    csv: Path | None,
) -> None:
    """One row an image or slide and question; those that cannot be read are named and stop no other."""
    from his2lip.serving import Classifier, ask, calibrated, load_for_use

    patches, wholes = split_slides(image_files(images), slides)
    asked = ask(prompts=prompts, biomarker=biomarker, guess_biomarker=guess_biomarker)
    heated(asked, slides.heat)  # a slip shows before the model is loaded
    loaded = load_for_use(model)
    questions = calibrated(asked, loaded, calibration)
    classifier = Classifier(loaded, questions)
    rows: list[dict[str, object]] = []
    unread: list[str] = []
    for start in range(0, len(patches), classifier.batch_size):
        readable: list[Path] = []
        pixels = _readable(patches[start : start + classifier.batch_size], readable, unread)
        for answered, file in zip(classifier.read(pixels), readable, strict=True):
            rows += [_row(str(file), q.title, answered[q.name]) for q in questions]
    if wholes:
        for file, answered in read_slides(wholes, classifier, slides, model=model, unread=unread):
            rows += [_row(str(file), q.title, answered[q.name]) for q in questions]
    if rows:
        show_answers(rows, scoring=classifier.model.similarity)
    if rows and csv is not None:
        columns = list(rows[0])
        _write_csv(csv, columns, [[row[c] for c in columns] for row in rows])
    for line in unread:
        say(f"not read: {line}")
    if not rows:
        raise ImageError("none of these images could be read", fix="see the lines above")


def show_answers(rows: Sequence[dict[str, object]], *, scoring: str) -> None:
    """The rows as a table; a column that is empty everywhere is left out."""
    heads = {"similarity": _SCORING[scoring], "prompt": "winning prompt"}
    columns = [c for c in rows[0] if any(row[c] is not None for row in rows)]
    shown = [[f"{v:.3f}" if isinstance(v, float) else v for v in (row[c] for c in columns)] for row in rows]
    table([heads.get(c, c) for c in columns], shown)


def _readable(files: Iterable[Path], readable: list[Path], unread: list[str]) -> Iterator[np.ndarray]:
    """Pixels of the files that can be decoded, noted in `readable`; why others cannot goes to `unread`."""
    from his2lip.serving import load_pixels

    for file in files:
        try:
            pixels = load_pixels(file)
        except ImageError as error:
            unread.append(str(error))
            continue
        readable.append(file)
        yield pixels


def _row(image: str, question: str, answer: Answer) -> dict[str, object]:
    return {
        "image": image,
        "question": question,
        "answer": answer.label,
        "similarity": answer.similarity,
        "margin": answer.margin,
        "probability": answer.probability,
        "prompt": answer.prompt,
    }


def run_calibrate(
    model: str,
    *,
    shards: str,
    split: str | None,
    prompts: str,
    biomarker: str | None,
    label: str | None,
    out: Path,
) -> None:
    """Fits a temperature to the tissue type, or to the staining of `biomarker` where one is named."""
    from his2lip.serving import ask, calibrate, load_for_use

    question = ask(prompts=prompts, biomarker=biomarker)[-1]
    column = label or ("tissue" if biomarker is None else "label")
    found = calibrate(load_for_use(model), shards, question, label=column, cache=_CACHE, split=split)
    say(f"temperature {found.temperature:.4g} for the {found.question}")
    say(f"fitted on {found.n:,} patches of the split {found.split}")
    rows = [
        ("negative log likelihood, nats", f"{found.nll_before:.4f}", f"{found.nll_after:.4f}"),
        ("expected calibration error, %", percent(found.ece_before), percent(found.ece_after)),
    ]
    table(("on these patches", "before (the model's own scale)", "after"), rows)
    found.save(out)
    say(f"written to {out}; his2lip classify IMAGE --model {model} --calibration {out}")


def run_retrieve(
    query: str,
    *,
    model: str,
    index: str,
    top: int,
    splits: Sequence[str],
    tissue: str | None,
    biomarker: str | None,
    keep_query: bool,
    csv: Path | None,
    page: Path | None,
) -> None:
    """The patches most like the query; what was embedded before is read from the cache."""
    from his2lip.serving import build_index, load_for_use, names_image, query_image, write_page

    if names_image(query) and not Path(query).is_file():
        raise ConfigError(
            "there is no such image file", where=query, fix="check the path, or write a sentence"
        )
    if not query.strip():
        raise ConfigError("the query is empty", fix="write a sentence, or name an image file")
    loaded = load_for_use(model)
    opened = build_index(index, loaded, cache=_CACHE, splits=splits or None)
    matches = opened.find(query, top=top, tissue=tissue, biomarker=biomarker, keep_query=keep_query)
    rows = [(m.rank, m.patch_id, m.similarity, m.split, m.tissue, m.biomarker) for m in matches]
    heads = ("rank", "patch", _SCORING[loaded.similarity], "split", "tissue type", "biomarker")
    table(heads, [(rank, patch, f"{similarity:.3f}", *rest) for rank, patch, similarity, *rest in rows])
    computed = opened.cache.counts.images
    say(f"{len(opened.table):,} patches searched, {computed:,} images embedded now")
    if csv is not None:
        _write_csv(csv, ("rank", "patch_id", "similarity", "split", "tissue", "biomarker"), rows)
    if page is not None:
        shown = query_image(query) if names_image(query) else query
        said = (
            f"{opened.shards.info.name}{' (generated)' if opened.shards.info.generated else ''}, by {model}"
        )
        write_page(page, matches, opened.images(matches), query=shown, said=said)
        say(f"written to {page}")


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files given, and the image files inside the folders given, in order, each once."""
    from his2lip.serving import IMAGE_FILES

    wanted, files = {*IMAGE_FILES, *_SLIDE_FILES}, dict[Path, None]()
    for path in paths:
        if path.is_dir():
            files |= dict.fromkeys(sorted(p for p in path.rglob("*") if p.suffix.lower() in wanted))
        elif path.is_file():
            files[path] = None
        else:
            raise ConfigError("there is no such file or folder", where=path, fix="check the path")
    if not files:
        raise ConfigError("there is no image here", where=", ".join(map(str, paths)))
    return list(files)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv_format.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    say(f"written to {path}")
