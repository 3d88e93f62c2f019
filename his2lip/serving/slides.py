"""Whole slides: answers for each tile of tissue, and for the slide by the mean embedding of its tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from his2lip.data.images import (
    Slide,
    Tiling,
    look_at,
    mpp_of,
    open_slide,
    overview_downsample,
    tile_places,
    tissue_mask,
)
from his2lip.errors import ImageError
from his2lip.evaluation import Scores, dab_area
from his2lip.serving import gates
from his2lip.serving.appearance import appearance
from his2lip.serving.basis import Basis, Scale
from his2lip.serving.classifier import Answer, Check, Classifier, answers, comparison_features
from his2lip.serving.gates import Refusal
from his2lip.serving.prefetch import prefetched
from his2lip.serving.questions import Question

PATCH_SIDE = 3000  # px, side of the largest published patches; a larger file that OpenSlide reads is a slide
MOST_HELD_BACK = 0.5  # share of tiles that are unfamiliar, or unsure, above which a slide is not answered
_THUMBNAIL = 1600  # px, longer side of a slide's thumbnail

ProgressCallback = Callable[[int, int], None]  # (tiles done, all tiles)


@dataclass(frozen=True, kw_only=True)
class SlideReading:
    """The results of one slide with T tiles.

    width, height  of level 0, in pixels
    mpp            of level 0, in microns per pixel
    side           of a tile, in level-0 pixels
    origin         level-0 (x, y) of the scanned area, which viewers show as (0, 0)
    places         int64 (T, 2), level-0 (x, y) of the top left corner of each tile
    questions      what was asked of each tile
    tiles          scores of the T tiles, by the name of the question
    checks         what is known of the T tiles beside the scores, by the name of the question
    force          whether answers that a gate holds back are shown
    whole          answers for the mean embedding of the tiles, by the name of the question
    thumbnail      uint8 (h, w, 3), the slide at low magnification
    """

    width: int
    height: int
    mpp: float
    side: int
    origin: tuple[int, int]
    places: np.ndarray
    questions: tuple[Question, ...]
    tiles: dict[str, Scores]
    checks: dict[str, list[Check]]
    force: bool
    whole: dict[str, Answer]
    thumbnail: np.ndarray

    @property
    def downsample(self) -> float:
        """Level-0 pixels per pixel of the thumbnail."""
        return overview_downsample(self.thumbnail, self.width, self.height)

    def answers(self, question: Question) -> Iterator[Answer]:
        """The answer for each tile."""
        return answers(question, self.tiles[question.name], self.checks[question.name], force=self.force)

    def answered(self, question: Question) -> np.ndarray:
        """bool (T,): whether each tile has an answer that no gate holds back, or that is forced."""
        return np.array([self.force or c.refusal is None for c in self.checks[question.name]], dtype=bool)

    def shares(self, question: Question) -> dict[str, float]:
        """Class -> its share of all tiles, as a fraction; tiles that are not answered have no class."""
        predicted = self.tiles[question.name].predicted[self.answered(question)]
        counts = np.bincount(predicted, minlength=len(question.prompts.classes))
        return dict(zip(question.prompts.classes, (counts / len(self.places)).tolist(), strict=True))


def is_slide(path: Path) -> bool:
    """Whether OpenSlide can open the file, and its image is larger than any patch."""
    import openslide

    try:
        with openslide.OpenSlide(path) as slide:
            return max(slide.dimensions) > PATCH_SIDE
    except openslide.OpenSlideError:
        return False


def stated_mpp(path: Path) -> float | None:
    """The microns per pixel that a file states, where OpenSlide reads them and they can be used."""
    import openslide

    try:
        with openslide.OpenSlide(path) as slide:
            return mpp_of(slide.properties)[0]
    except openslide.OpenSlideError:
        return None


def read_slide(
    path: Path,
    classifier: Classifier,
    *,
    size: int,
    mpp: float,
    slide_mpp: float | None = None,
    progress: ProgressCallback | None = None,
) -> SlideReading:
    """Answers for the tissue of a slide, in tiles of `size` px at `mpp` microns per pixel.

    size, mpp  those of the patches that the model was trained on
    slide_mpp  microns per pixel of level 0; None: what the file records
    The pixels of at most three batches of tiles are in memory at a time. Raises ImageError for a file that
    cannot be read or shows no tissue, and where the microns per pixel of the slide are unknown.
    """
    tiling = Tiling(kind="tiles", size=size, mpp=mpp)
    with open_slide(path, mpp=slide_mpp) as slide:
        if not slide.mpp:
            what = "the slide does not record its microns per pixel"
            fix = "classify it apart with --slide-mpp, such as 0.25 for a scan at 40x"
            raise ImageError(what, where=path, key="--slide-mpp", fix=fix)
        side = tiling.side(slide.mpp)
        places = np.array(tile_places(slide, tiling, seed=path.name), dtype=np.int64)
        tiles = _read_tiles(slide, places, classifier, side, size, progress)
        thumbnail = slide.overview(_THUMBNAIL)
        scale = Scale.of(file=slide.mpp, option=slide_mpp)
        look = look_at(thumbnail)
        downsample = overview_downsample(thumbnail, slide.width, slide.height)
        coverage = _coverage(thumbnail, places, side, downsample=downsample)
        shown = f"{scale}; read in tiles of {size} px at {mpp:g} µm per pixel"
        far = tiles.far.mean()
        familiarity = classifier.history.distance(None)
        if classifier.history.familiarity is not None:
            beyond = f"{far:.0%} of the tiles are beyond the limit"
            familiarity = f"{beyond}; {classifier.history.familiarity}"
        checks: dict[str, list[Check]] = {}
        whole: dict[str, Answer] = {}
        for question in classifier.questions:
            basis = classifier.basis(
                question,
                scale=shown,
                familiarity=familiarity,
                coverage=f"{coverage:.0%} of the tissue, in {len(places):,} tiles",
            )
            refusal = gates.stain(
                look, classifier.history, about_staining=question.about_staining
            ) or gates.scale((size, size), Scale(mpp, scale.source), classifier.history)
            of_tiles = [
                Check(basis, refusal or gates.unfamiliar(distance), dab)
                for distance, dab in zip(tiles.distances, tiles.dab_of(question), strict=True)
            ]
            checks[question.name] = classifier.doubted(question, tiles.scores[question.name], of_tiles)
            unsure = np.mean([bool(c.refusal and c.refusal.gate == "unsure") for c in checks[question.name]])
            if refusal is None and far > MOST_HELD_BACK:
                what = f"{far:.0%} of the tiles are unlike the training patches"
                refusal = Refusal("unfamiliar", what)
            if refusal is None and unsure > MOST_HELD_BACK:
                what = f"{unsure:.0%} of the tiles have a probability below {classifier.abstain_below:g}"
                refusal = Refusal("unsure", what)
            whole[question.name] = _whole(classifier, question, tiles, basis, refusal)
        return SlideReading(
            width=slide.width,
            height=slide.height,
            mpp=slide.mpp,
            side=side,
            origin=slide.origin,
            places=places,
            questions=classifier.questions,
            tiles=tiles.scores,
            checks=checks,
            force=classifier.force,
            whole=whole,
            thumbnail=thumbnail,
        )


@dataclass(frozen=True)
class _Tiles:
    """What was read from T tiles.

    scores     by the name of the question
    centre     mean embedding, float64 (1, D), of the tiles within the limit, or of all where none is
    dab        measured DAB area of each tile, float (T,); 0 where no question is about staining
    tissue     share of tissue of each tile, float (T,); likewise
    distances  of each tile from the training patches, in units of the limit; None where there is none
    """

    scores: dict[str, Scores]
    centre: np.ndarray
    dab: np.ndarray
    tissue: np.ndarray
    distances: list[float | None]

    @property
    def far(self) -> np.ndarray:
        """bool (T,): whether each tile is beyond the limit."""
        return _beyond(self.distances)

    @property
    def dab_of_all(self) -> float:
        """The measured DAB area of the tissue in all tiles. A tile with less tissue counts for less."""
        return float(self.dab @ self.tissue / max(self.tissue.sum(), 1e-9))

    def dab_of(self, question: Question) -> list[float] | list[None]:
        """The DAB area of each tile beside answers to `question`."""
        count = len(self.scores[question.name].predicted)
        return self.dab.tolist() if question.about_staining else [None] * count


def _read_tiles(
    slide: Slide,
    places: np.ndarray,
    classifier: Classifier,
    side: int,
    size: int,
    progress: ProgressCallback | None,
) -> _Tiles:
    """Reads and scores all tiles. `side`: of a tile in level-0 pixels; it is resized to `size`."""
    parts: list[dict[str, Scores]] = []
    dab: list[float] = []
    tissue: list[float] = []
    distances: list[float | None] = []
    within, every = np.zeros(classifier.model.dim), np.zeros(classifier.model.dim)
    history = classifier.history
    stained = any(question.about_staining for question in classifier.questions)

    def read(place: tuple[int, int]) -> _Tile:
        pixels = slide.region(*place, side, size)
        return _Tile(
            crops=classifier.crops(pixels),
            dab=dab_area(pixels) if stained else 0.0,
            tissue=float(tissue_mask(pixels).mean()) if stained else 0.0,
            appearance=None if history.familiarity is None else appearance(pixels),
        )

    # Closing it stops the threads before the slide is closed, also after an error or Ctrl-C.
    with closing(prefetched(read, places.tolist(), batch=classifier.batch_size)) as batches:
        for batch in batches:
            features = classifier.encode(np.concatenate([tile.crops for tile in batch]))
            found = history.distances(features, [t.appearance for t in batch if t.appearance is not None])
            parts.append(classifier.score(features))
            compared = comparison_features(features.astype(np.float64), classifier.model)
            every += compared.sum(axis=0)
            within += compared[~_beyond(found)].sum(axis=0)
            distances += found
            dab += [tile.dab for tile in batch]
            tissue += [tile.tissue for tile in batch]
            if progress:
                progress(len(dab), len(places))
    joined = {q.name: _joined([part[q.name] for part in parts]) for q in classifier.questions}
    near = int((~_beyond(distances)).sum())
    centre = within / near if near else every / len(places)
    return _Tiles(joined, centre[None], np.array(dab), np.array(tissue), distances)


@dataclass(frozen=True)
class _Tile:
    """One tile as it is read: the model's inputs, uint8 (1, 3, h, w), and what was measured on its pixels."""

    crops: np.ndarray
    dab: float
    tissue: float
    appearance: np.ndarray | None


def _beyond(distances: Sequence[float | None]) -> np.ndarray:
    """bool (T,): whether each distance is known and beyond the limit."""
    return np.array([distance is not None and distance > 1 for distance in distances], dtype=bool)


def _joined(parts: list[Scores]) -> Scores:
    return Scores(
        scores=np.concatenate([p.scores for p in parts]),
        predicted=np.concatenate([p.predicted for p in parts]),
        prompt=np.concatenate([p.prompt for p in parts]),
        ties=sum(p.ties for p in parts),
    )


def _whole(
    classifier: Classifier, question: Question, tiles: _Tiles, basis: Basis, refusal: Refusal | None
) -> Answer:
    """The answer for the mean embedding of the tiles.

    It has no probability, because temperatures are fitted to single patches.
    """
    scores = classifier.score(tiles.centre)[question.name]
    dab = tiles.dab_of_all if question.about_staining else None
    uncalibrated = replace(question, temperature=None)
    check = Check(replace(basis, calibrated_on="not calibrated: a mean of tiles"), refusal, dab)
    return next(answers(uncalibrated, scores, [check], force=classifier.force))


def _coverage(thumbnail: np.ndarray, places: np.ndarray, side: int, *, downsample: float) -> float:
    """The share of the tissue in the thumbnail, uint8 (h, w, 3), that lies in the tiles at `places`."""
    tissue = tissue_mask(thumbnail)
    covered = np.zeros(tissue.shape, dtype=bool)
    for (left, top), (right, bottom) in tile_boxes(places, side, downsample=downsample):
        covered[top:bottom, left:right] = True
    return float((tissue & covered).sum() / max(1, tissue.sum()))


def tile_boxes(places: np.ndarray, side: int, *, downsample: float) -> Iterator[tuple[list[int], list[int]]]:
    """(left, top) and (right, bottom) of each tile in a picture, of `downsample` level-0 pixels per pixel."""
    corners = np.stack([places, places + side], axis=1) / downsample
    for (left, top), (right, bottom) in corners.round().astype(int).tolist():
        yield [left, top], [max(right, left + 1), max(bottom, top + 1)]
