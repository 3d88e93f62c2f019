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

    None outside such a cluster, and where it has no machines with GPUs, or its budget cannot be read.
    """
    tree = _cluster(file)
    try:
        prices = read_budget(tree).usd_per_hour
    except ValueError:
        return None
    costs = [
        prices[node["node_config"]["InstanceType"]] * math.ceil(gpus / count)
        for node in tree["available_node_types"].values()
        if (count := (node.get("resources") or {}).get("GPU"))  # Ray fills in what a node type leaves out
    ]
    return (min(costs), max(costs)) if costs else None


def budget_left(*, file: Path = CONFIG) -> float | None:
    """USD that the machines may still cost; None outside such a cluster, or where that is not known."""
    try:
        budget = read_budget(_cluster(file))
        return budget.usd - Record.read(budget.record).usd(budget.usd_per_hour)
    except (OSError, ValueError):  # an estimate stops no run; the guard says what is wrong
        return None


def _cluster(file: Path) -> Mapping[str, Any]:
    """The cluster's file; empty where there is none that can be read."""
    try:
        tree = yaml.safe_load(file.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, Mapping) else {}
