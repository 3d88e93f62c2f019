"""Serving: a chosen model on new images."""

from his2lip.serving.calibrate import calibrate, calibrated
from his2lip.serving.classify import Answer, Classifier, classify
from his2lip.serving.questions import Question, ask
from his2lip.serving.retrieve import Match, build_index, retrieve

__all__ = [
    "Answer",
    "Classifier",
    "Match",
    "Question",
    "ask",
    "build_index",
    "calibrate",
    "calibrated",
    "classify",
    "retrieve",
]
