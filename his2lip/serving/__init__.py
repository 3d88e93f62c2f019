"""Serving: a chosen model on new images."""

from his2lip.serving.classify import Classification, Classifier, classify
from his2lip.serving.retrieve import Match, build_index, retrieve

__all__ = ["Classification", "Classifier", "Match", "build_index", "classify", "retrieve"]
