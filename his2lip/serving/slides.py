"""Whole slides: an answer for every tile of tissue, and one for the slide from their mean embedding."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from his2lip.data.images import Slide, Tiling, open_slide, tile_places
from his2lip.errors import ConfigError
from his2lip.evaluation import Scores
from his2lip.serving.classifier import Answer, Classifier, answers, comparison_features
from his2lip.serving.questions import Question

PATCH_SIDE = 3000  # px, the side of the largest published patches; a larger OpenSlide file is a slide

ProgressCallback = Callable[[int, int], None]  # tiles done, tiles in all


@dataclass(frozen=True, kw_only=True)
class SlideReading:
    """The results of one slide with T tiles.

    width, height  of level 0, in pixels
    mpp            of level 0, in microns per pixel
    side           of a tile, in level-0 pixels
    origin         level-0 (x, y) of the scanned area, which viewers show as (0, 0)
    places         int64 (T, 2), level-0 x and y of each tile's top left corner
    tiles          scores of the T tiles, by question
    whole          the slide's answer, by question: that of the tiles' mean embedding
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
    whole: dict[str, Answer]
    thumbnail: np.ndarray

    def shares(self, question: Question) -> dict[str, float]:
        """The share of tiles of each class, as a fraction."""
        counts = np.bincount(self.tiles[question.name].predicted, minlength=len(question.prompts.classes))
        return dict(zip(question.prompts.classes, (counts / len(self.places)).tolist(), strict=True))


def is_slide(path: Path) -> bool:
    """Whether OpenSlide opens the file and it is larger than any patch."""
    import openslide

    try:
        with openslide.OpenSlide(path) as slide:
            return max(slide.dimensions) > PATCH_SIDE
    except openslide.OpenSlideError:
        return False


def read_slide(
    path: Path,
    classifier: Classifier,
    *,
    size: int,
    mpp: float,
    slide_mpp: float | None = None,
    thumbnail: int = 1600,
    threads: int = 2,
    progress: ProgressCallback | None = None,
) -> SlideReading:
    """Answers of the tissue tiles of `size` px at `mpp` microns per pixel, the scale that the model knows.

    slide_mpp  microns per pixel of level 0, whatever the file records
    Pixels of a few batches of tiles are in memory at a time, and the scores of all tiles. Raises ConfigError
    where the slide's scale is unknown, ImageError for a file that cannot be read or shows no tissue.
    """
    tiling = Tiling(kind="tiles", size=size, mpp=mpp)
    with open_slide(path, mpp=slide_mpp) as slide:
        if not slide.mpp:
            fix = "add --slide-mpp, such as 0.25 for a scan at 40x"
            raise ConfigError(
                "the slide does not record its microns per pixel", where=path, key="--slide-mpp", fix=fix
            )
        side = tiling.side(slide.mpp)
        places = tile_places(slide, tiling, seed=path.name)
        tiles, centre = _read_tiles(slide, places, classifier, side, size, threads, progress)
        return SlideReading(
            width=slide.width,
            height=slide.height,
            mpp=slide.mpp,
            side=side,
            origin=slide.origin,
            places=np.array(places, dtype=np.int64),
            questions=classifier.questions,
            tiles=tiles,
            whole=_whole(classifier, centre),
            thumbnail=slide.overview(thumbnail),
        )


def _read_tiles(
    slide: Slide,
    places: list[tuple[int, int]],
    classifier: Classifier,
    side: int,
    size: int,
    threads: int,
    progress: ProgressCallback | None,
) -> tuple[dict[str, Scores], np.ndarray]:
    """Scores of all tiles by question, and their mean embedding (1, D)."""
    parts: list[dict[str, Scores]] = []
    total, done = np.zeros(classifier.model.dim), 0

    def read(place: tuple[int, int]) -> np.ndarray:
        return classifier.crops(slide.region(*place, side, size))

    # Closed here, so that no thread reads from a slide that is closed after an error or Ctrl-C.
    with closing(_prefetched(read, places, batch=classifier.batch_size, threads=threads)) as batches:
        for crops in batches:
            features = classifier.encode(crops)
            parts.append(classifier.score(features))
            total += comparison_features(features.astype(np.float64), classifier.model).sum(axis=0)
            done += len(features)
            if progress:
                progress(done, len(places))
    joined = {q.name: _joined([part[q.name] for part in parts]) for q in classifier.questions}
    return joined, total[None] / done


def _prefetched(
    read: Callable[[tuple[int, int]], np.ndarray], places: list[tuple[int, int]], *, batch: int, threads: int
) -> Generator[np.ndarray, None, None]:
    """Batches of crops, uint8 (B, 3, h, w); threads read the next batch while one is in use."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[np.ndarray]] = []
        for start in range(0, len(places), batch):
            coming = [pool.submit(read, place) for place in places[start : start + batch]]
            if waiting:
                yield np.concatenate([tile.result() for tile in waiting])
            waiting = coming
        yield np.concatenate([tile.result() for tile in waiting])


def _joined(parts: list[Scores]) -> Scores:
    return Scores(
        scores=np.concatenate([p.scores for p in parts]),
        predicted=np.concatenate([p.predicted for p in parts]),
        prompt=np.concatenate([p.prompt for p in parts]),
        ties=sum(p.ties for p in parts),
    )


def _whole(classifier: Classifier, centre: np.ndarray) -> dict[str, Answer]:
    """The answers of a mean embedding, without probabilities: temperatures are fitted to single patches."""
    scores = classifier.score(centre)
    uncalibrated = [replace(question, temperature=None) for question in classifier.questions]
    return {question.name: next(answers(question, scores[question.name])) for question in uncalibrated}
