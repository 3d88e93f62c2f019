"""Plans and records of grid cells, for tests without a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scipy.special import stdtrit

from his2lip.data.cards.card import Protocol
from his2lip.data.shards.reader import ShardSet
from his2lip.evaluation import results
from his2lip.evaluation.grid_cell import CellPlan
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.protocols import select
from his2lip.evaluation.results import CellResult


def plan_of(
    shards: ShardSet, *, split: str = "test", classes: dict[str, list[str]] | None = None
) -> CellPlan:
    """A plan whose classes are negative (Stroma) and positive (Tumor), unless `classes` is given."""
    protocol = Protocol(
        split=split,
        label="tissue",
        classes=classes or {"negative": ["Stroma"], "positive": ["Tumor"]},
        prompts="staining",
        basis="ours",
    )
    return CellPlan(
        dataset="toy",
        protocol_name="default",
        protocol=protocol,
        uri=shards.uri,
        data_digest=shards.digest,
        origin=shards.info.origin,
        generated=False,
        in_domain=False,
        project_card=None,
        roles=dict(shards.info.roles),
        prompts=PromptSet.build("none", {c: [c] for c in protocol.classes}),
        selection=select(shards, protocol),
    )


def cell_result(**changes: object) -> CellResult:
    """A complete record of ten units of two classes, with `changes`.

    Limits of `chance_corrected` bring its standard error, unless they are those of the draws of chance.
    """
    known = {
        "model": "CLIP",
        "dataset": "hnscc",
        "protocol": "default",
        "n": 10,
        "clusters": 5,
        "cluster_kind": "case",
        "no_interval": None,
        "positive": "a",
        "accuracy": 0.5,
        "macro_f1": 0.4,
        "balanced_accuracy": 0.5,
        "chance_corrected": 0.0,
        "kappa": 0.0,
        "sensitivity": None,
        "specificity": None,
        "auroc": None,
        "weights_sha256": "w",
        "prompts_sha256": "p",
        "split_sha256": "s",
        "images_sha256": "i",
        "groups_sha256": "g",
        "encoder": "e",
        "classes": ["a", "b"],
        "confusion": [[5, 0], [5, 0]],
        "per_class": {
            "a": {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 5},
            "b": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 5},
        },
        "quadratic_kappa": None,
        "breakdown": {},
        "ties": 0,
        "apart": 0,
        "repeated": 0,
        "cut_prompts": 0,
        "without_mpp": 0,
        "coverage": 1.0,
        "field_um": None,
        "squashed": 0,
        "seen_note": "",
        "protocol_version": 9,
        "in_domain": False,
        "generated": False,
        "split": "test",
        "role": "report",
        "basis": "ours",
        "cell": "c",
    }
    fields: dict[str, Any] = known | changes
    low, high = fields.get("chance_corrected_lo"), fields.get("chance_corrected_hi")
    if low is not None and high is not None and fields["model"] != "baseline:chance":
        fields |= {"chance_corrected_df": max(fields["clusters"] - 1, 1)}
        fields["chance_corrected_se"] = standard_error_of(fields["chance_corrected"], low, high, fields)
    return results.CellResult(**fields)


def standard_error_of(value: float, low: float, high: float, fields: Mapping[str, Any]) -> float:
    """That of an interval of which at most one limit is cut to the range of the figure."""
    return max(value - low, high - value) / float(stdtrit(fields["chance_corrected_df"], 0.975))
