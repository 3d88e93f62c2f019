"""Serving: a chosen model on new images."""

from his2lip.serving.calibrate import calibrate, calibrated
from his2lip.serving.classify import Classifier, classify, load_for_use
from his2lip.serving.questions import ask
from his2lip.serving.retrieve import build_index, retrieve

__all__ = [
    "Classifier",
    "ask",
    "build_index",
    "calibrate",
    "calibrated",
    "classify",
    "load_for_use",
    "retrieve",
]
