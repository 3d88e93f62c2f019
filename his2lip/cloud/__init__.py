"""What the head of a cluster runs beside Ray: the budget guard, and the choice between spot and on demand.

`cluster.yaml` copies this folder to the head. Its modules run there without the rest of his2lip.
"""

from his2lip.cloud.budget_guard import Budget, read_budget

__all__ = ["Budget", "read_budget"]
