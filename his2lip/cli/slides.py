"""Whole slides in `his2lip classify`: tiles of each slide, its heat maps, and its GeoJSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from his2lip.cli.console import ProgressBar, percent, say
from his2lip.errors import ConfigError, ImageError, did_you_mean

if TYPE_CHECKING:
    from his2lip.serving import Answer, Classifier, Question, SlideReading


@dataclass(frozen=True, kw_only=True)
class SlideOptions:
    """The options of `classify` that concern slides."""

    always: bool  # tile every image, not only slides
    mpp: float | None  # microns per pixel of the tiles
    tile: int | None  # pixels per side of a tile
    slide_mpp: float | None  # microns per pixel of all slides, whatever their files state
    heat: str | None  # the class whose similarity is drawn
    out: Path  # folder of the pictures and GeoJSON files


def split_slides(files: Sequence[Path], options: SlideOptions) -> tuple[list[Path], list[Path]]:
    """(patches, slides). Raises ConfigError for two slides whose outputs would have one name."""
    from his2lip.serving import is_slide

    slides = [file for file in files if options.always or is_slide(file)]
    whole = set(slides)
    stems = [slide.stem for slide in slides]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        what, fix = f"two slides are called '{twice}'", "classify them separately, with two folders (--out)"
        raise ConfigError(what, where=options.out, key=twice, fix=fix)
    return [file for file in files if file not in whole], slides


def read_slides(
    slides: Sequence[Path], classifier: Classifier, options: SlideOptions, *, model: str, unread: list[str]
) -> list[tuple[Path, dict[str, Answer]]]:
    """The answers of each slide; the reasons for slides that cannot be read are added to `unread`."""
    size, mpp = _tile_size(model, classifier, options)
    rows = []
    for path in slides:
        try:
            reading = _read(path, classifier, size, mpp, options.slide_mpp)
        except ImageError as error:
            unread.append(f"{error} ({path})" if error.where is None else str(error))
            continue
        say(f"{path}: {len(reading.places):,} tiles of {size} px at {mpp:g} µm per pixel")
        _write(path.stem, reading, options)
        rows.append((path, reading.whole))
    return rows


def question_with_class(questions: Sequence[Question], label: str) -> Question:
    """The question that has the class `label`. Raises ConfigError where none has."""
    known = {name: question for question in questions for name in question.prompts.classes}
    if label not in known:
        what, fix = f"no question has a class '{label}'", did_you_mean(label, known)
        raise ConfigError(what, key="--heat", fix=fix)
    return known[label]


def _read(path: Path, classifier: Classifier, size: int, mpp: float, slide_mpp: float | None) -> SlideReading:
    from his2lip.serving import read_slide

    with ProgressBar(path.name) as bar:
        progress = bar.counter("tiles")
        return read_slide(path, classifier, size=size, mpp=mpp, slide_mpp=slide_mpp, progress=progress)


def _tile_size(model: str, classifier: Classifier, options: SlideOptions) -> tuple[int, float]:
    """(pixels, microns per pixel) of a tile: as in the options, else as in the training patches."""
    from his2lip.models import meta_of

    trained = meta_of(model).get("patch") or {}
    mpp = options.mpp or trained.get("mpp")
    if mpp is None:
        what = "the model does not record the microns per pixel of its training patches, which tiles need"
        fix = "add --mpp and --tile (MIHIC's: --mpp 0.2264 --tile 128)"
        raise ConfigError(what, where=model, key="--mpp", fix=fix)
    return options.tile or trained.get("size") or classifier.model.preprocess.size[0], mpp


def _write(stem: str, reading: SlideReading, options: SlideOptions) -> None:
    """One picture per question, one of the class in `options.heat`, and the tiles for QuPath."""
    from his2lip.serving import draw_classes, draw_similarity, write_geojson

    options.out.mkdir(parents=True, exist_ok=True)
    for question in reading.questions:
        shares = sorted(reading.shares(question).items(), key=lambda item: -item[1])
        listed = ", ".join(f"{label} {percent(share)} %" for label, share in shares[:5] if share)
        say(f"  tiles by {question.title}: {listed}")
        place = options.out / f"{stem}.{question.name}.png"
        draw_classes(reading, question).save(place)
        say(f"  {place}")
    if options.heat is not None:
        place = options.out / f"{stem}.heat.png"
        draw_similarity(reading, question_with_class(reading.questions, options.heat), options.heat).save(
            place
        )
        say(f"  {place}")
    write_geojson(options.out / f"{stem}.geojson", reading)
    say(f"  {options.out / f'{stem}.geojson'} (drag it onto the slide in QuPath)")
