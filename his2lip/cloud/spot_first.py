"""Which node type Ray's autoscaler starts: spot where there is any, else the same machine on demand.

Ray's own scorers do not fall back. The one of the first autoscaler ignores which types AWS refused; the
second autoscaler lowers only types whose nodes started and then did not join (seen in Ray 2.60.0). The head
sets RAY_AUTOSCALER_UTILIZATION_SCORER=spot_first.score, Ray's hook for a scorer.
"""

from __future__ import annotations

from typing import Any

ON_DEMAND = "-on-demand"  # how the names of the types end that are the second choice


def score(
    node_resources: dict[str, float],
    resources: list[dict[str, float]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[Any, ...] | None:
    """Ray's own score of a node type, then whether AWS gave the last one, then spot before on demand.

    Of two types with the same resources, the one that AWS refused in the last 30 minutes is the second choice
    (AUTOSCALER_NODE_AVAILABILITY_MAX_STALENESS_S). None where the type cannot hold any of `resources`.
    """
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer

    fit = _default_utilization_scorer(  # its types say `Real`, which no float is to a type checker
        node_resources,  # type: ignore[arg-type]
        resources,  # type: ignore[arg-type]
        node_type,
        node_availability_summary=node_availability_summary,
    )
    if fit is None:
        return None
    known = node_availability_summary.node_availabilities.get(node_type)
    return (*fit, known is None or known.is_available, not node_type.endswith(ON_DEMAND))
