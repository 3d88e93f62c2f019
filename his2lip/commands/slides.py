"""Whole slides for `his2lip classify`: a heat map and a GeoJSON file each, and what stands in the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from his2lip.commands.console import Progress, percent, say
from his2lip.errors import ConfigError, ImageError, did_you_mean

if TYPE_CHECKING:
    from his2lip.serving import Answer, Classifier, Question, SlideReading


@dataclass(frozen=True, kw_only=True)
class SlideOptions:
    """How slides are read: `--slide`, `--mpp`, `--tile`, `--slide-mpp`, `--heat` and `--out` of classify."""

    always: bool = False
    mpp: float | None = None
    tile: int | None = None
    slide_mpp: float | None = None
    heat: str | None = None
    out: Path = Path("runs/slides")


def split_slides(files: Sequence[Path], options: SlideOptions) -> tuple[list[Path], list[Path]]:
    """(patches, slides). Raises ConfigError for two slides whose outputs would have one name."""
    from his2lip.serving import is_slide

    slides = [file for file in files if options.always or is_slide(file)]
    whole = set(slides)
    stems = [slide.stem for slide in slides]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise ConfigError(f"two slides are called '{twice}'", fix="classify them into two folders (--out)")
    return [file for file in files if file not in whole], slides


def read_slides(
    slides: Sequence[Path], classifier: Classifier, options: SlideOptions, *, model: str, unread: list[str]
) -> list[tuple[Path, dict[str, Answer]]]:
    """The answers of each slide; what is wrong with one that cannot be read goes to `unread`."""
    size, mpp = _field(model, classifier, options)
    rows = []
    for path in slides:
        try:
            reading = _read(path, classifier, size, mpp, options.slide_mpp)
        except ImageError as error:
            unread.append(f"{error} ({path})" if error.where is None else str(error))
            continue
        say(f"{path}: {len(reading.places):,} tiles of {size} px at {mpp:g} µm a pixel")
        _write(path.stem, reading, options)
        rows.append((path, reading.whole))
    return rows


def _read(path: Path, classifier: Classifier, size: int, mpp: float, slide_mpp: float | None) -> SlideReading:
    from his2lip.serving import read_slide

    with Progress(path.name) as bar:

        def show(done: int, total: int) -> None:
            bar.update(f"{done:,} of {total:,} tiles")

        return read_slide(path, classifier, size=size, mpp=mpp, slide_mpp=slide_mpp, progress=show)


def _field(model: str, classifier: Classifier, options: SlideOptions) -> tuple[int, float]:
    """(pixels, microns a pixel) of a tile: as asked, else as the checkpoint says that it was trained."""
    from his2lip.models import meta_of

    trained = meta_of(model).get("patch") or {}
    mpp = options.mpp or trained.get("mpp")
    if mpp is None:
        said = "the model does not say at which scale it was trained, which slides are tiled at"
        raise ConfigError(said, where=model, fix="add --mpp and --tile (MIHIC's: --mpp 0.2264 --tile 128)")
    return options.tile or trained.get("size") or classifier.model.preprocess.size[0], mpp


def heated(questions: Sequence[Question], label: str | None) -> Question | None:
    """The question that has the class whose similarity is drawn."""
    if label is None:
        return None
    known = {name: question for question in questions for name in question.prompts.classes}
    if label not in known:
        raise ConfigError(f"no question has a class '{label}'", fix=did_you_mean(label, known))
    return known[label]


def _write(stem: str, reading: SlideReading, options: SlideOptions) -> None:
    """A picture a question, one of the class asked for, and the tiles for QuPath."""
    from his2lip.serving import draw_classes, draw_similarity, write_geojson

    options.out.mkdir(parents=True, exist_ok=True)
    for question in reading.questions:
        shares = sorted(reading.shares(question).items(), key=lambda item: -item[1])
        said = ", ".join(f"{label} {percent(share)} %" for label, share in shares[:5] if share)
        say(f"  tiles by {question.title}: {said}")
        place = options.out / f"{stem}.{question.name}.png"
        draw_classes(reading, question).save(place)
        say(f"  {place}")
    chosen = heated(reading.questions, options.heat)
    if chosen is not None and options.heat is not None:
        place = options.out / f"{stem}.heat.png"
        draw_similarity(reading, chosen, options.heat).save(place)
        say(f"  {place}")
    write_geojson(options.out / f"{stem}.geojson", reading)
    say(f"  {options.out / f'{stem}.geojson'} (drag it onto the slide in QuPath)")
