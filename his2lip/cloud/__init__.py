"""What the head of a cluster runs beside Ray: the budget guard, and the choice between spot and on demand.

`cluster.yaml` copies this folder to the head. Its modules run there without the rest of his2lip, except
`cost`, which the commands use.
"""

from his2lip.cloud.cost import budget_left, usd_per_hour

__all__ = ["budget_left", "usd_per_hour"]
