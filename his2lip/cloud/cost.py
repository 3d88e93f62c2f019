"""What the machines of a cluster cost per hour, by the prices in its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from his2lip.cloud.budget_guard import CONFIG, Record, read_budget


def usd_per_hour(gpus: int, *, file: Path = CONFIG) -> tuple[float, float] | None:
    """The least and the most that machines with `gpus` GPUs cost: by node type, since Ray chooses it.

    gpus  at least 1
    file  the cluster's file as its head has it. Prices are on demand: spot machines cost less.

    None outside such a cluster, and where it has no machines with GPUs.
    """
    tree = _cluster(file)
    if tree is None:
        return None
    prices = read_budget(tree).usd_per_hour
    costs = [
        prices[node["node_config"]["InstanceType"]] * math.ceil(gpus / node["resources"]["GPU"])
        for node in tree["available_node_types"].values()
        if node["resources"].get("GPU")
    ]
    return (min(costs), max(costs)) if costs else None


def budget_left(*, file: Path = CONFIG) -> float | None:
    """USD that the cluster's machines may still cost; None outside such a cluster."""
    tree = _cluster(file)
    if tree is None:
        return None
    budget = read_budget(tree)
    return budget.usd - Record.read(budget.record).usd(budget.usd_per_hour)


def _cluster(file: Path) -> Mapping[str, Any] | None:
    try:
        tree = yaml.safe_load(file.expanduser().read_text(encoding="utf-8"))
    except OSError:
        return None
    return tree if isinstance(tree, Mapping) and "budget" in (tree.get("metadata") or {}) else None
