"""What each baseline of a board is, in words for a reader of the page."""

from __future__ import annotations

from his2lip.evaluation.config import PREFIX

_STAINED = "Only for tasks of a positive and a negative class."
# A test compares the names with those of baselines.py and of the negative controls.
DEFINITIONS = {
    "chance": (
        "A class drawn at random for each unit, all classes alike. Its figures are expectations over many "
        "draws, and the limits hold 95 % of the draws."
    ),
    "majority": (
        "The most frequent class of the train split for every unit; that of the scored split where the "
        "dataset has no train split."
    ),
    "mean-colour": "k nearest neighbours on the mean colour of an image, fitted on the train split.",
    "stained-area": (
        "Positive where the stained share of an image exceeds a threshold that is fitted on the train split, "
        f"or is Otsu's where there is none. {_STAINED}"
    ),
    "dab-threshold": (
        "Positive where one measure of the DAB stain exceeds a threshold that is fitted on the train split. "
        f"{_STAINED}"
    ),
    "shuffled-labels": (
        "Negative control: the predictions of the model against shuffled labels, "
        "which must be as good as chance."
    ),
    "empty-prompts": (
        "Negative control: the model with one empty sentence per class, so that it always predicts the "
        "first class."
    ),
}


def definition(model: str) -> str | None:
    """What a row called `baseline:NAME` is; None for a model, and for a name that has no definition."""
    if not model.startswith(PREFIX):
        return None
    return DEFINITIONS.get(model.removeprefix(PREFIX).partition(" of ")[0])
