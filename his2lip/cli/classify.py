"""`his2lip classify` and `calibrate`: answers of a model on new images and slides, and probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from his2lip.cli.basis import show_basis
from his2lip.cli.console import ProgressBar, percent, say, table
from his2lip.cli.options import (
    MODEL_HELP,
    SIMILARITIES,
    Cache,
    CsvFile,
    Model,
    Precision,
    check_outputs,
    refuse_unused,
    write_csv,
)
from his2lip.cli.registry import command
from his2lip.errors import ConfigError, ImageError, did_you_mean
from his2lip.resources import CACHE, STORAGE

if TYPE_CHECKING:
    import numpy as np

    from his2lip.serving import Answer, Classifier, Examined, Question, SlideReading


SLIDES = Path(STORAGE, "slides")  # default of `--out`


@command("classify")
def classify(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Model,
    prompts: Annotated[str, typer.Option(help="A prompt set's name or file.")] = "tissue",
    biomarker: Annotated[
        str | None, typer.Option(help="The biomarker that was stained for; adds its staining.")
    ] = None,
    guess_biomarker: Annotated[
        bool, typer.Option("--guess-biomarker", help="Guess the biomarker; the answer is marked as a guess.")
    ] = False,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(help="A file that `calibrate` wrote: adds a probability. May be repeated."),
    ] = None,
    csv: CsvFile = None,
    slide: Annotated[
        bool,
        typer.Option("--slide", help="Tile every image, not only those over 3000 px that OpenSlide opens."),
    ] = False,
    mpp: Annotated[
        float | None,
        typer.Option(min=0.05, max=20, help="Microns per pixel of a slide's tiles. Default: the model's."),
    ] = None,
    tile: Annotated[
        int | None, typer.Option(min=8, help="Pixels per side of a tile. Default: the model's.")
    ] = None,
    image_mpp: Annotated[
        float | None,
        typer.Option(
            "--image-mpp",
            "--slide-mpp",
            min=0.05,
            max=20,
            help="Microns per pixel of the images and slides, whatever their files state.",
        ),
    ] = None,
    organ: Annotated[
        str | None, typer.Option(help="The organ of the images: states whether training saw it.")
    ] = None,
    heat: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="Also draw the similarity of a slide's tiles to this class."),
    ] = None,
    heat_range: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="Similarities of the darkest and the brightest colour. Default: -1:1 for cosines.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also show answers that are held back, marked, with the reason.")
    ] = False,
    abstain_below: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Hold back answers of a lower probability; needs a calibration. risk_coverage.csv of a "
            "benchmark has the error that each value leaves.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the heat maps and GeoJSON files of slides.")] = SLIDES,
    precision: Precision = "fp32",
) -> None:
    """Classify images or slides by tissue type, and by staining of a biomarker that you name.

    Each answer has its similarity (cosine or dot product, as the model compares), margin and winning
    prompt, and states what it rests on: training, calibration, scale, organ, biomarker and coverage. An
    answer about staining has the measured DAB area beside it.

    The answer is "not answered", with the reason, for glass, for an H&E image where a biomarker is asked
    for or the model was trained on other stains only, for more than twice or less than half the scale of
    training, and for an image far from the training patches.

    A slide is tiled at the microns per pixel of the model's training patches; its heat map and a
    GeoJSON file for QuPath are written.
    """
    from his2lip.files import check_writable
    from his2lip.serving import Classifier, ask, calibrated, load_for_inference, prefetched

    files = _image_files(images)
    check_outputs({"--csv": csv}, inputs=[*files, *(calibration or [])])
    asked = ask(prompts=prompts, biomarker=biomarker, guess_biomarker=guess_biomarker)
    if heat is not None:
        question_with_class(asked, heat)  # an unknown class is an error before the model is loaded
    slides = SlideOptions(
        always=slide, mpp=mpp, tile=tile, image_mpp=image_mpp, heat=heat, heat_range=heat_range, out=out
    )
    if heat is None:
        refuse_unused({"--heat-range": heat_range}, "has the colours of --heat", fix="add --heat CLASS")
    patches, wholes = split_slides(files, slides)
    if wholes:
        check_writable(slides.out, fix="name another folder with --out")
        for place in (place for file in wholes for place in _maps(file.stem, asked, slides).values()):
            check_outputs({"--out": place}, inputs=files)
    else:
        fix = "add --slide, which tiles every image; --image-mpp is the scale of an image"
        unused = {"--heat": heat, "--mpp": mpp, "--tile": tile}
        refuse_unused(unused, "is for slides, and none of these files is one", fix=fix)
    loaded = load_for_inference(model, precision=precision)
    questions = calibrated(asked, loaded.model, calibration or [], carried=loaded.calibrations)
    classifier = Classifier(
        loaded.model,
        questions,
        history=loaded.history,
        organ=organ,
        force=force,
        abstain_below=abstain_below,
    )
    plan = tile_plan(classifier, slides, model=model) if wholes else None  # before the patches are classified
    rows: list[dict[str, object]] = []
    unread: list[str] = []
    read = partial(_seen, classifier, image_mpp)
    for batch in prefetched(read, patches, batch=classifier.batch_size):
        unread += [str(error) for _, error in batch if isinstance(error, ImageError)]
        readable = [(file, seen) for file, seen in batch if not isinstance(seen, ImageError)]
        found = classifier.classify_seen([seen for _, seen in readable])
        for answers, (file, _) in zip(found, readable, strict=True):
            rows += [_row(str(file), q.title, answers[q.name]) for q in questions]
    if plan is not None:
        for file, answers in read_slides(wholes, classifier, slides, plan, unread=unread):
            rows += [_row(str(file), q.title, answers[q.name]) for q in questions]
    if rows:
        _show_answers(rows, similarity=classifier.model.similarity)
    if rows and csv is not None:
        columns = list(rows[0])
        write_csv(csv, columns, [[row[c] for c in columns] for row in rows])
    for line in unread:
        say(f"not read: {line}")
    if not rows:
        raise ImageError("none of these images could be read", fix="see the lines above")


@command("calibrate")
def calibrate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    shards: Annotated[str, typer.Option(help="A folder or URI of labelled shards.")],
    split: Annotated[
        str | None,
        typer.Option(help="A split with the role select. Default: the dataset's only such split."),
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="A prompt set's name or file. Default: tissue.")] = None,
    biomarker: Annotated[
        str | None, typer.Option(help="Calibrate the staining of this biomarker instead of the tissue type.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="The column of the true class. Default: tissue, or label for a staining."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file of the temperature.")] = Path("calibration.json"),
    cache: Cache = CACHE,
) -> None:
    """Fit the temperature that turns similarities into probabilities, on a split for model selection."""
    from his2lip.serving import ask, calibrate, load_for_inference

    check_outputs({"--out": out}, inputs=[Path(prompts)] if prompts else [])
    if biomarker is not None:
        refuse_unused({"--prompts": prompts}, "is for the tissue type, and --biomarker calibrates a staining")
    question = ask(prompts=prompts or "tissue", biomarker=biomarker)[-1]
    column = label or ("tissue" if biomarker is None else "label")
    found = calibrate(
        load_for_inference(model).model, shards, question, label=column, cache=cache, split=split
    )
    say(f"temperature {found.temperature:.4g} for the {found.question}")
    say(f"fitted on {found}")
    rows = [
        ("negative log likelihood, nats", f"{found.nll_before:.4f}", f"{found.nll_after:.4f}"),
        ("calibration error (debiased), %", percent(found.ece_before), percent(found.ece_after)),
    ]
    table(("on these patches", "before (the model's own scale)", "after"), rows)
    found.save(out)
    say(f"written to {out}; his2lip classify IMAGE --model {model} --calibration {out}")


def _show_answers(rows: Sequence[dict[str, object]], *, similarity: str) -> None:
    """Prints the rows as a table without the columns that are empty in every row, and what they rest on."""
    from his2lip.serving import BASIS_FIELDS, DAB_UNIT

    heads = {"similarity": SIMILARITIES[similarity], "prompt": "winning prompt", "dab_area": "DAB area"}
    apart = {*BASIS_FIELDS, "gate", "dab_unit"}
    columns = [c for c in rows[0] if c not in apart and any(row[c] is not None for row in rows)]
    shown = [[f"{v:.3f}" if isinstance(v, float) else v for v in (row[c] for c in columns)] for row in rows]
    table([heads.get(c, c) for c in columns], shown)
    if "dab_area" in columns:
        say(f"DAB area: {DAB_UNIT}")
    show_basis(rows)


def _seen(
    classifier: Classifier, mpp: float | None, file: Path
) -> tuple[Path, tuple[Examined, np.ndarray] | ImageError]:
    """A file with what it shows, or with the error of one that cannot be decoded.

    mpp  as the user states it, or None
    """
    from his2lip.serving import Scale, load_pixels, stated_mpp

    try:
        pixels = load_pixels(file)
    except ImageError as error:
        return file, error
    return file, classifier.see(pixels, Scale.of(file=stated_mpp(file), option=mpp))


def _row(image: str, question: str, answer: Answer) -> dict[str, object]:
    from his2lip.serving import DAB_UNIT

    refusal = answer.refusal
    return {
        "image": image,
        "question": question,
        "answer": answer.label,
        "similarity": answer.similarity,
        "margin": answer.margin,
        "probability": answer.probability,
        "prompt": answer.prompt,
        "reason": None if refusal is None else refusal.reason,
        "gate": None if refusal is None else refusal.gate,
        "forced": "forced" if answer.forced else None,
        "dab_area": answer.dab,
        "dab_unit": None if answer.dab is None else DAB_UNIT,
        **asdict(answer.basis),
    }


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _image_files(paths: Sequence[Path]) -> list[Path]:
    """The given files, and the image files inside the given folders, in order and without repeats.

    Hidden files and folders inside a given folder are left out.
    """
    from his2lip.serving import IMAGE_FILES, SLIDE_FILES

    suffixes, files = {*IMAGE_FILES, *SLIDE_FILES}, dict[Path, None]()
    for path in paths:
        if path.is_dir():
            found = (p for p in path.rglob("*") if p.suffix.lower() in suffixes)
            files |= dict.fromkeys(sorted(p for p in found if not _is_hidden(p.relative_to(path))))
        elif path.is_file():
            files[path] = None
        else:
            raise ConfigError("there is no such file or folder", where=path, fix="check the path")
    if not files:
        raise ConfigError("there is no image here", where=", ".join(map(str, paths)))
    return list(files)


@dataclass(frozen=True, kw_only=True)
class SlideOptions:
    """The options of `classify` that concern slides."""

    always: bool  # tile every image, not only slides
    mpp: float | None  # microns per pixel of the tiles
    tile: int | None  # pixels per side of a tile
    image_mpp: float | None  # microns per pixel of all images, whatever their files state
    heat: str | None  # the class whose similarity is drawn
    heat_range: str | None  # LOW:HIGH, the similarities of its darkest and brightest colours
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


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """How the slides of one call are tiled and drawn."""

    size: int  # pixels per side of a tile
    mpp: float  # microns per pixel of a tile
    bounds: tuple[float, float] | None  # similarities of the heat map's colours; None: no map


def tile_plan(classifier: Classifier, options: SlideOptions, *, model: str) -> TilePlan:
    """The options, with what the model decides. Raises ConfigError for those that cannot be used with it."""
    size, mpp = _tile_size(model, classifier, options)
    similarity = classifier.model.similarity
    bounds = None if options.heat is None else heat_bounds(options.heat_range, similarity)
    return TilePlan(size=size, mpp=mpp, bounds=bounds)


def read_slides(
    slides: Sequence[Path],
    classifier: Classifier,
    options: SlideOptions,
    plan: TilePlan,
    *,
    unread: list[str],
) -> list[tuple[Path, dict[str, Answer]]]:
    """The answers of each slide; the reasons for slides that cannot be read are added to `unread`."""
    rows = []
    for path in slides:
        try:
            reading = _read(path, classifier, plan, options.image_mpp)
        except ImageError as error:
            unread.append(f"{error} ({path})" if error.where is None else str(error))
            continue
        say(f"{path}: {len(reading.places):,} tiles of {plan.size} px at {plan.mpp:g} µm per pixel")
        _write(path.stem, reading, options, plan.bounds)
        rows.append((path, reading.whole))
    return rows


def question_with_class(questions: Sequence[Question], label: str) -> Question:
    """The question that has the class `label`. Raises ConfigError where none has."""
    known = {name: question for question in questions for name in question.prompts.classes}
    if label not in known:
        what, fix = f"no question has a class '{label}'", did_you_mean(label, known)
        raise ConfigError(what, key="--heat", fix=fix)
    return known[label]


def _read(path: Path, classifier: Classifier, plan: TilePlan, slide_mpp: float | None) -> SlideReading:
    from his2lip.serving import read_slide

    with ProgressBar(path.name) as bar:
        progress = bar.counter("tiles")
        return read_slide(
            path, classifier, size=plan.size, mpp=plan.mpp, slide_mpp=slide_mpp, progress=progress
        )


def _tile_size(model: str, classifier: Classifier, options: SlideOptions) -> tuple[int, float]:
    """(pixels, microns per pixel) of a tile: as in the options, else as in the training patches."""
    trained = classifier.history.patch
    mpp = options.mpp or (trained and trained["mpp"])
    if mpp is None:
        what = "the model does not record the microns per pixel of its training patches, which tiles need"
        fix = "add --mpp and --tile (MIHIC's: --mpp 0.2264 --tile 128)"
        raise ConfigError(what, where=model, key="--mpp", fix=fix)
    size = trained["size"] if trained else classifier.model.preprocess.size[0]
    return options.tile or size, mpp


def heat_bounds(given: str | None, similarity: str) -> tuple[float, float]:
    """The similarities of the darkest and the brightest colour. Raises ConfigError for another form."""
    if given is None and similarity == "cosine":
        return -1.0, 1.0
    fix = "write two numbers, such as --heat-range 0.1:0.4"
    if given is None:
        raise ConfigError("a dot product has no largest value", key="--heat-range", fix=fix)
    try:
        low, high = (float(part) for part in given.split(":"))
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise ConfigError(f"'{given}' is not LOW:HIGH", key="--heat-range", fix=fix)
    return low, high


def _maps(stem: str, questions: Sequence[Question], options: SlideOptions) -> dict[str, Path]:
    """The pictures of a slide: that of each question by its name, and that of `options.heat` as `heat`."""
    names = [*(question.name for question in questions), *([] if options.heat is None else ["heat"])]
    return {name: options.out / f"{stem}.{name}.png" for name in names}


def _write(
    stem: str, reading: SlideReading, options: SlideOptions, bounds: tuple[float, float] | None
) -> None:
    """One picture per question, one of the class in `options.heat`, and the tiles for QuPath."""
    from his2lip.serving import draw_classes, draw_similarity, write_geojson

    options.out.mkdir(parents=True, exist_ok=True)
    maps = _maps(stem, reading.questions, options)
    for question in reading.questions:
        shares = sorted(reading.shares(question).items(), key=lambda item: -item[1])
        listed = ", ".join(f"{label} {percent(share)} %" for label, share in shares[:5] if share)
        say(f"  share of tiles by {question.title}: {listed or 'none is answered'}")
        draw_classes(reading, question).save(maps[question.name])
        say(f"  {maps[question.name]}")
    if options.heat is not None and bounds is not None:
        question = question_with_class(reading.questions, options.heat)
        draw_similarity(reading, question, options.heat, bounds=bounds).save(maps["heat"])
        values = reading.tiles[question.name].scores[:, question.prompts.classes.index(options.heat)]
        say(f"  {maps['heat']}, colours from {bounds[0]:g} to {bounds[1]:g}")
        say(f"  the similarities here lie between {values.min():.3f} and {values.max():.3f} (--heat-range)")
    write_geojson(options.out / f"{stem}.geojson", reading)
    say(f"  {options.out / f'{stem}.geojson'} (drag it onto the slide in QuPath)")
