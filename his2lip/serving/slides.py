"""Whole slides: answers for each tile of tissue, and for the slide by the mean embedding of its tiles."""

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

PATCH_SIDE = 3000  # px, side of the largest published patches; a larger file that OpenSlide reads is a slide
_THUMBNAIL = 1600  # px, longer side of a slide's thumbnail
_THREADS = 2  # that read tiles

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
    whole: dict[str, Answer]
    thumbnail: np.ndarray

    def shares(self, question: Question) -> dict[str, float]:
        """Class -> its share of the tiles, as a fraction."""
        counts = np.bincount(self.tiles[question.name].predicted, minlength=len(question.prompts.classes))
        return dict(zip(question.prompts.classes, (counts / len(self.places)).tolist(), strict=True))


def is_slide(path: Path) -> bool:
    """Whether OpenSlide can open the file, and its image is larger than any patch."""
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
    progress: ProgressCallback | None = None,
) -> SlideReading:
    """Answers for the tissue of a slide, in tiles of `size` px at `mpp` microns per pixel.

    size, mpp  those of the patches that the model was trained on
    slide_mpp  microns per pixel of level 0; None: what the file records
    The pixels of at most three batches of tiles are in memory at a time. Raises ConfigError where the microns
    per pixel of the slide are unknown, and ImageError for a file that cannot be read or shows no tissue.
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
        tiles, centre = _read_tiles(slide, places, classifier, side, size, progress)
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
            thumbnail=slide.overview(_THUMBNAIL),
        )


def _read_tiles(
    slide: Slide,
    places: list[tuple[int, int]],
    classifier: Classifier,
    side: int,
    size: int,
    progress: ProgressCallback | None,
) -> tuple[dict[str, Scores], np.ndarray]:
    """The scores of all tiles by the name of the question, and the mean embedding (1, D) of the tiles.

    side  of a tile in level-0 pixels; it is resized to `size`
    """
    parts: list[dict[str, Scores]] = []
    total, done = np.zeros(classifier.model.dim), 0

    def read(place: tuple[int, int]) -> np.ndarray:
        return classifier.crops(slide.region(*place, side, size))

    # Closing it stops the threads before the slide is closed, also after an error or Ctrl-C.
    with closing(_prefetched(read, places, batch=classifier.batch_size)) as batches:
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
    read: Callable[[tuple[int, int]], np.ndarray], places: list[tuple[int, int]], *, batch: int
) -> Generator[np.ndarray, None, None]:
    """Batches of crops, uint8 (B, 3, h, w). Threads read the next batch while the caller uses one."""
    with ThreadPoolExecutor(_THREADS) as pool:
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
    """The answers for a mean embedding (1, D).

    They have no probabilities, because temperatures are fitted to single patches.
    """
    scores = classifier.score(centre)
    uncalibrated = [replace(question, temperature=None) for question in classifier.questions]
    return {question.name: next(answers(question, scores[question.name])) for question in uncalibrated}
