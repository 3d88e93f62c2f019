"""Baselines that need no model: chance, majority, mean colour, stained area, a DAB threshold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from his2lip.config import digest
from his2lip.data.shards import ShardSet, open_shards, splits_with_role
from his2lip.errors import DatasetError, did_you_mean
from his2lip.evaluation.config import PREFIX
from his2lip.evaluation.dab import DabEncoder, best_threshold, fit_rule
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.encoders import ImageEncoder, decoder_version
from his2lip.evaluation.grid_cell import CellPlan, Plan, Scored
from his2lip.evaluation.metrics import is_positive
from his2lip.evaluation.probes import fit_classifier, fitted_scores
from his2lip.evaluation.protocols import APART, Selection, select, shared_units
from his2lip.evaluation.random_tables import TABLES, RandomTables, seed_of
from his2lip.evaluation.sight import Sight
from his2lip.evaluation.zero_shot import Scores, mean_by_group

# Amount of DAB above which a pixel counts as stained, as skimage.color.rgb2hed has it: a sixth of the optical
# density, unmixed with the vectors of Ruifrok and Johnston (2001). So it is a density of 0.30; where there is
# only counterstain, rgb2hed gives about 0.03.
STAINED_HED = 0.05
STAIN_SIDE = 512  # px; the stained share of larger images is measured after subsampling without blurring
CHANCE = f"expectation over {TABLES:,} random draws; the limits hold 95 % of them"
SELF_CONFIRMATION = (
    "partly self-confirmation on generated images: the generator mixes its stains from the vectors, shifted "
    "for each case, by which this baseline measures stain"
)
_VERSION = 1
_VERSIONS = {"majority": 2, "mean-colour": 4, "stained-area": 2, "dab-threshold": 2}  # they predict otherwise


class ColourEncoder:
    """Four numbers in [0, 1] of an image: its mean red, green and blue, and its stained share.

    It is an `ImageEncoder`, so that the embedding cache reads each image only once for the colour baselines.
    """

    width = 4

    key = digest(
        {
            "encoder": "colour",
            "version": _VERSION,
            "od": STAINED_HED,
            "side": STAIN_SIDE,
            "decoder": decoder_version(),
        }
    )

    def crop_key(self, mpp: float | None) -> str:
        return ""

    def crops(self, pixels: np.ndarray, mpp: float | None) -> np.ndarray:
        from skimage.color import rgb2hed

        step = -(-max(pixels.shape[:2]) // STAIN_SIDE)
        stained = (rgb2hed(pixels[::step, ::step])[..., 2] > STAINED_HED).mean()
        return np.array([[*(pixels.reshape(-1, 3).mean(axis=0) / 255), stained]], dtype=np.float32)

    def encode(self, crops: np.ndarray) -> np.ndarray:
        return crops


class BaselineScorer:
    """One baseline as a scorer of the grid."""

    uses_prompts = False

    def __init__(self, name: str, cache: EmbeddingCache) -> None:
        self.name = name
        self._kind = baseline_kind(name)
        self.weights = f"{PREFIX}{self._kind}/{_VERSIONS.get(self._kind, _VERSION)}"
        self._cache = cache

    def identity(self, plan: Plan) -> str:
        known = {"baseline": self.weights, "colour": ColourEncoder.key, "data": plan.data_digest}
        # The digest of the data does not tell the roles of its splits.
        return digest(known | {"splits": reads(self.name, plan)[1] if isinstance(plan, CellPlan) else []})

    def trained_on(self, plan: Plan) -> bool:
        return False  # only models are marked as in-domain

    def overlap(self, plan: Plan) -> None:
        return None

    def cut_prompts(self, plan: CellPlan) -> None:
        return None

    def score(self, plan: CellPlan) -> Scored:
        scores = _KINDS[self._kind](plan, self._cache)
        if self._kind == "chance":
            labels = plan.selection.labels[plan.selection.scored]
            seed = seed_of(plan.selection.split_sha256)
            tables = RandomTables.uniform(labels, len(plan.selection.classes), seed=seed)
            return Scored(scores, caveat=CHANCE, tables=tables)
        if self._kind == "mean-colour" and train_split(plan) is None and plan.labelled is not None:
            clusters = plan.selection.clusters.kind
            return Scored(scores, caveat=plan.labelled.describe("knn", None, clusters))
        confirms = plan.generated and self._kind in ("stained-area", "dab-threshold")
        return Scored(scores, caveat=SELF_CONFIRMATION if confirms else None)

    def sight(self, plan: CellPlan) -> Sight:
        return Sight()  # whole images are measured, and no model has a training field


def baseline_kind(name: str) -> str:
    """`majority` for `baseline:majority`. Raises DatasetError for an unknown name."""
    kind = name.removeprefix(PREFIX)
    if kind not in _KINDS:
        raise DatasetError(f"unknown baseline '{kind}'", key=kind, fix=did_you_mean(kind, _KINDS))
    return kind


def scoring(plan: CellPlan) -> frozenset[str]:
    """The kinds of baselines that can score this plan."""
    fits = train_split(plan) is not None
    stains = _positive_class(plan.selection.classes) is not None
    needs = {"mean-colour": fits or _in_folds(plan), "stained-area": stains, "dab-threshold": fits and stains}
    return frozenset(kind for kind in _KINDS if needs.get(kind, True))


def reads(name: str, plan: CellPlan) -> tuple[ImageEncoder | None, list[str]]:
    """What measures images for a baseline, None where nothing does, and the splits besides the scored one."""
    kind, train = baseline_kind(name), train_split(plan)
    if kind in ("chance", "majority"):
        return None, []
    if kind != "dab-threshold":
        return ColourEncoder(), [train] if train else []
    selects = splits_with_role(plan.roles, "select", besides=plan.protocol.split)
    return DabEncoder(), [*([train] if train else []), *selects[:1]]


def train_split(plan: CellPlan) -> str | None:
    """The dataset's first train split other than the scored split; None where there is none."""
    names = splits_with_role(plan.roles, "train", besides=plan.protocol.split)
    return names[0] if names else None


def _in_folds(plan: CellPlan) -> bool:
    """Whether labels of the scored split itself may be fitted on, in folds."""
    return plan.labelled is not None and plan.labelled.split is None and plan.labelled.refusal is None


def chance(plan: CellPlan, cache: EmbeddingCache) -> Scores:
    """Equal scores of all classes. The predictions are one draw, which the digest of the split seeds."""
    selection = plan.selection
    classes, units = len(selection.classes), len(selection.labels)
    drawn = np.random.default_rng(seed_of(plan.selection.split_sha256)).integers(classes, size=units)
    scores = np.full((units, classes), 1 / classes, dtype=np.float32)
    return Scores(scores, drawn, np.zeros(units, dtype=np.int64), ties=units)


def majority(plan: CellPlan, cache: EmbeddingCache) -> Scores:
    """The most frequent class of the train split, or of the scored units where there is no train split."""
    labels = _fitting_labels(plan)
    commonest = np.bincount(labels, minlength=len(plan.selection.classes)).argmax()
    return _one_hot(np.full(len(plan.selection.labels), commonest), plan.selection)


def mean_colour(plan: CellPlan, cache: EmbeddingCache) -> Scores:
    """k nearest neighbours on mean red, green and blue, fitted on the train split.

    Without a train split, in a benchmark with probes, it is fitted as they are: on the scored split, in folds
    of whole cases. Raises DatasetError where there is nothing to fit on.
    """
    shards, split = open_shards(plan.uri), train_split(plan)
    if split is None:
        if not _in_folds(plan):
            what = "the mean-colour baseline needs a train split to fit on"
            raise DatasetError(what, where=plan.uri, key="train")
        units = _colours(cache, shards, plan.protocol.split, plan.selection)[:, :3]
        return Scores.of(fitted_scores("knn", plan.selection, units))
    fitted, known = _to_fit_on(plan, shards, split)
    colours = _colours(cache, shards, split, fitted)[:, :3]
    nearest = fit_classifier("knn", colours[known], fitted.labels[known])
    units = _colours(cache, shards, plan.protocol.split, plan.selection)[:, :3]
    scores = np.zeros((len(units), len(plan.selection.classes)), dtype=np.float32)
    scores[:, nearest.classes_] = nearest.predict_proba(units)
    return Scores.of(scores)


def stained_area(plan: CellPlan, cache: EmbeddingCache) -> Scores:
    """Positive where the stained share exceeds a threshold.

    The threshold has the best balanced accuracy on the train split. Without a train split it is Otsu's
    (1979), which uses no labels. Raises DatasetError where the classes are not a positive and a negative one.
    """
    positive = _positive_class(plan.selection.classes)
    if positive is None:
        what = "the stained-area baseline needs a positive and a negative class"
        raise DatasetError(what, where=plan.uri, key="classes")
    shards, split = open_shards(plan.uri), train_split(plan)
    units = _colours(cache, shards, plan.protocol.split, plan.selection)[:, 3]
    if split is None:
        threshold = _otsu(units)
    else:
        fitted, known = _to_fit_on(plan, shards, split)
        share = _colours(cache, shards, split, fitted)[known, 3]
        threshold = best_threshold(share, fitted.labels[known] == positive)
    return _by_margin(units - threshold, positive)


def dab_threshold(plan: CellPlan, cache: EmbeddingCache) -> Scores:
    """Positive where one of the DAB features (dab.py) exceeds a threshold.

    The threshold is fitted on the train split. The feature is chosen on the select split where there is one,
    otherwise on the train split. Raises DatasetError where there is no train split, or where the classes are
    not a positive and a negative one.
    """
    positive, split = _positive_class(plan.selection.classes), train_split(plan)
    if positive is None or split is None:
        what = "the DAB threshold needs one positive and one negative class, and a train split"
        raise DatasetError(what, where=plan.uri, key="classes" if positive is None else "train")
    shards = open_shards(plan.uri)

    def labelled(name: str) -> tuple[np.ndarray, np.ndarray]:
        """(features (U, F), whether positive, bool (U,)) of the units of a split that are fitted on."""
        fitted, known = _to_fit_on(plan, shards, name)
        features = _features(cache, DabEncoder(), shards, name, fitted)
        return features[known], fitted.labels[known] == positive

    selects = splits_with_role(plan.roles, "select", besides=plan.protocol.split)
    rule = fit_rule(*labelled(split), select=labelled(selects[0]) if selects else None)
    units = _features(cache, DabEncoder(), shards, plan.protocol.split, plan.selection)
    return _by_margin(units[:, rule.feature] - rule.threshold, positive)


_KINDS: dict[str, Callable[[CellPlan, EmbeddingCache], Scores]] = {
    "chance": chance,
    "majority": majority,
    "mean-colour": mean_colour,
    "stained-area": stained_area,
    "dab-threshold": dab_threshold,
}


def _colours(cache: EmbeddingCache, shards: ShardSet, split: str, selection: Selection) -> np.ndarray:
    """float32 (U, 4): the mean of the numbers of `ColourEncoder` over each unit's rows."""
    return _features(cache, ColourEncoder(), shards, split, selection)


def _features(
    cache: EmbeddingCache, encoder: ImageEncoder, shards: ShardSet, split: str, selection: Selection
) -> np.ndarray:
    """float32 (U, F): the mean of an encoder's features over each unit's rows."""
    features = cache.embed(encoder, shards, split, rows=selection.rows).features
    return mean_by_group(features, selection.unit).astype(np.float32)


def _fitting_labels(plan: CellPlan) -> np.ndarray:
    """int64 (U,): the scored labels of the train split, or of the scored split where there is none."""
    split = train_split(plan)
    if split is None:
        return plan.selection.labels[plan.selection.labels != APART]
    fitted, known = _to_fit_on(plan, open_shards(plan.uri), split)
    return fitted.labels[known]


def _to_fit_on(plan: CellPlan, shards: ShardSet, split: str) -> tuple[Selection, np.ndarray]:
    """The units of a split, and bool (U,): those that are fitted on.

    They are labelled, and of other cases and images than the scored ones. Raises DatasetError without any.
    """
    fitted = select(shards, plan.protocol, split=split)
    known = fitted.scored & ~shared_units(fitted, plan.selection)
    if not known.any():
        what = f"the split '{split}' has no labelled unit of other cases to fit a baseline on"
        raise DatasetError(what, where=plan.uri, key=split)
    return fitted, known


def _positive_class(classes: tuple[str, ...]) -> int | None:
    """The number of the positive class of two, such as `Ki67-positive` or HER2 `3+`; None where unclear."""
    if len(classes) != 2:
        return None
    found = [c for c, name in enumerate(classes) if is_positive(name)]
    return found[0] if len(found) == 1 else None


def _otsu(values: np.ndarray) -> float:
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(values)) if len(np.unique(values)) > 1 else float(values[0])


def _one_hot(predicted: np.ndarray, selection: Selection) -> Scores:
    return Scores.of(np.eye(len(selection.classes), dtype=np.float32)[predicted])


def _by_margin(margin: np.ndarray, positive: int) -> Scores:
    """Scores of two classes, where `margin` (U,) is above 0 for the units of class number `positive`."""
    scores = np.stack([-margin, margin], axis=1).astype(np.float32)
    return Scores.of(scores if positive == 1 else scores[:, ::-1])
