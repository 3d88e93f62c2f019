"""Bounds on macro F1 for a given accuracy, checked on all small tables and on the published figures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from his2lip.config import OptionError
from his2lip.report.board import published_rows
from his2lip.report.comparability import is_possible, macro_f1_bounds


def test_all_tables_of_two_classes_are_within_the_bounds_and_both_bounds_are_reached() -> None:
    reached = set()
    for table in itertools.product(range(7), repeat=4):
        total = sum(table)
        if not total:
            continue
        tp, fn, fp, tn = table
        accuracy = (tp + tn) / total
        f1 = [2 * hit / (2 * hit + fp + fn) if 2 * hit + fp + fn else 0.0 for hit in (tp, tn)]
        macro = sum(f1) / 2
        least, largest = macro_f1_bounds(accuracy, 2)
        assert least - 1e-12 <= macro <= largest + 1e-12
        reached |= {
            bound for bound, value in (("least", least), ("largest", largest)) if abs(macro - value) < 1e-12
        }
    assert reached == {"least", "largest"}


@given(st.integers(2, 6), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60))
def test_every_real_result_is_possible(classes: int, pairs: list[tuple[int, int]]) -> None:
    truth, predicted = (np.array(part) % classes for part in zip(*pairs, strict=True))
    accuracy = float(accuracy_score(truth, predicted))
    macro = float(f1_score(truth, predicted, labels=range(classes), average="macro", zero_division=0))
    assert is_possible(accuracy, macro, classes)


def test_exactly_the_published_pairs_that_no_classifier_can_reach_are_marked() -> None:
    marked = {(row.model, row.dataset) for row in published_rows() if not row.is_possible}
    assert marked == {
        *((model, "BCData") for model in ("CLIP", "PLIP", "MUSK", "HIS2BiomedCLIP")),
        *((model, "PanTumor") for model in ("CLIP", "PLIP")),
        ("MUSK", "BCI"),
    }


@pytest.mark.parametrize(
    ("accuracy", "classes", "name"), [(1.5, 2, "accuracy"), (-0.1, 2, "accuracy"), (0.5, 1, "classes")]
)
def test_arguments_out_of_range_are_refused_by_name(accuracy: float, classes: int, name: str) -> None:
    with pytest.raises(OptionError) as refused:
        macro_f1_bounds(accuracy, classes)
    assert refused.value.key == name
