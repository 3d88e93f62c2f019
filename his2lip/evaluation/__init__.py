"""Evaluation: what a model scores without training on it, from embeddings that are computed once."""

# Names are looked up when they are asked for: scoring and metrics must import without what the grid needs.
_HOMES = {
    "BenchmarkConfig": "his2lip.evaluation.config",
    "run_grid": "his2lip.evaluation.grid",
    "EmbeddingCache": "his2lip.evaluation.embeddings",
    "SelectValidator": "his2lip.evaluation.validation",
}
__all__ = ["BenchmarkConfig", "EmbeddingCache", "SelectValidator", "run_grid"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
