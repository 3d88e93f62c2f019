"""What scores a row of the grid: its model, loaded or known, or a control, a probe or a baseline."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from his2lip.errors import His2lipError, ModelError
from his2lip.evaluation.baselines import BaselineScorer
from his2lip.evaluation.config import PREFIX, BenchmarkConfig, ModelEntry
from his2lip.evaluation.controls import ControlScorer
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.grid_cell import CellPlan, Plan, Scorer
from his2lip.evaluation.known_model import KnownModel, ModelFacts, facts_key, read_facts, write_facts
from his2lip.evaluation.once import Once
from his2lip.evaluation.probe_scorer import ProbeScorer
from his2lip.evaluation.scorers import ModelScorer
from his2lip.evaluation.views import TrainingField

if TYPE_CHECKING:
    from his2lip.models import DualEncoder, TrainingRecord


def scorers(
    config: BenchmarkConfig, plans: Sequence[Plan], cache: EmbeddingCache
) -> Iterator[tuple[ModelEntry, Plan, Scorer | Exception]]:
    """Each row of the grid with its plan and what scores it in this process, or why nothing can."""
    loaded: dict[str, Once[ModelScorer]] = {}
    groups = [config.rows_of(model) for model in config.models]
    for entry in (entry for group in [*groups, baseline_rows(config)] for entry in group):
        mine = plans_of(entry, plans)
        try:
            scorer = scorer_of(entry, loaded, cache, config, {})
        except Exception as error:
            yield from ((entry, plan, error) for plan in mine)
            continue
        yield from ((entry, plan_of(plan, scorer), scorer) for plan in mine)


def plans_of(entry: ModelEntry, plans: Sequence[Plan]) -> list[Plan]:
    """The plans that a row of the leaderboard is scored by."""
    return [plan for plan in plans if plan.takes(entry)]


def plan_of(plan: Plan, scorer: Scorer | None) -> Plan:
    """The plan that a scorer scores: a control has other labels or prompts than its model."""
    if isinstance(scorer, ControlScorer) and isinstance(plan, CellPlan):
        return scorer.plan(plan)
    return plan


def scorer_of(
    entry: ModelEntry,
    loaded: dict[str, Once[ModelScorer]],
    cache: EmbeddingCache,
    config: BenchmarkConfig,
    weights: Mapping[str, str],
) -> Scorer:
    """The scorer of a row. `loaded` holds the model that was used last, by its entry without name.

    What loading it raises is raised for its controls and probes too, without a second attempt.

    weights  name of a model -> what identifies its weights; a model of which the cache knows the rest is
             loaded only where something is to be encoded
    """
    if entry.path.startswith(PREFIX):
        return BaselineScorer(entry.name, cache)
    own = {"name": "", "seeds_of": None, "control": None, "probe": None}
    same = entry.model_copy(update=own).model_dump_json()
    if same not in loaded or (entry.control is None and entry.probe is None):
        loaded.clear()
        loaded[same] = Once(functools.partial(_model_scorer, entry, cache, config, weights))
    model = loaded[same]()
    if entry.probe is not None:
        return ProbeScorer(entry.name, model, entry.probe)
    return model if entry.control is None else ControlScorer(entry.name, model, entry.control)


def baseline_rows(config: BenchmarkConfig) -> list[ModelEntry]:
    """The rows of the benchmark's baselines."""
    return [ModelEntry(name=f"{PREFIX}{b}", path=f"{PREFIX}{b}") for b in config.baselines]


def identities(names: Iterable[str]) -> dict[str, str]:
    """Name of a model -> what identifies its weights here; one that cannot be read is left to its task."""
    from his2lip.models import weights_identity

    found = {}
    for name in names:
        with suppress(His2lipError, OSError):
            found[name] = weights_identity(name)
    return found


def check_weights(entry: ModelEntry, expected: Mapping[str, str]) -> None:
    """Raises ModelError where this process, on its machine, finds another model than the driver did."""
    from his2lip.models import weights_identity

    for name in entry.loads:
        if name in expected and weights_identity(name) != expected[name]:
            what = "this machine has another model here than the one that started the benchmark"
            raise ModelError(what, where=name, key=entry.name, fix="use a folder that both see")


def load_entry(entry: ModelEntry, config: BenchmarkConfig) -> DualEncoder:
    """The entry's model, or the blend of two, for inference."""
    import torch

    from his2lip.models import blend, load_model

    torch.set_num_threads(config.task_threads)
    device = _device(config)
    model = load_model(entry.path, device=device, precision=config.precision, seed=config.seed)
    if entry.blend is None:
        return model.lowered()
    base = load_model(entry.blend.base, device=device, precision=config.precision, seed=config.seed)
    return blend(base, model, alpha=entry.blend.alpha).lowered()


def facts_key_of(entry: ModelEntry, config: BenchmarkConfig, weights: Mapping[str, str]) -> str | None:
    """The name of what is known of an entry's model; None where its name does not identify its weights."""
    from his2lip.models import BACKBONES, is_registered

    def identified(name: str) -> bool:
        if name not in weights or is_registered(name):
            return False
        by_contents = weights[name] != name
        return by_contents or name == "tiny" or (":" not in name and name not in BACKBONES)  # by the seed

    names = entry.loads
    if not all(map(identified, names)):
        return None
    alpha = None if entry.blend is None else entry.blend.alpha
    return facts_key([[weights[name] for name in names], alpha, config.seed, config.precision])


def entry_meta(entry: ModelEntry) -> dict[str, Any]:
    """The provenance of the entry's model; at alpha 0 the weights are those of the base model."""
    from his2lip.models import meta_of

    return meta_of(entry.blend.base if entry.blend and entry.blend.alpha == 0 else entry.path)


def _model_scorer(
    entry: ModelEntry, cache: EmbeddingCache, config: BenchmarkConfig, weights: Mapping[str, str]
) -> ModelScorer:
    load = functools.partial(load_entry, entry, config)
    key = facts_key_of(entry, config, weights)
    facts = None if key is None else read_facts(cache.root, key)
    model = load() if facts is None else KnownModel(facts, _device(config), load)
    scorer = ModelScorer(
        entry.name,
        model,
        cache,
        record=_training_record(entry),
        declared=entry.trained_on,
        field=TrainingField.of(entry_meta(entry)),
        captions=entry_meta(entry).get("captions_digest"),
        batch_size=config.task_batch,
        threads=config.task_threads,
    )
    if key is not None and not isinstance(model, KnownModel):
        with suppress(OSError):  # a cache that can only be read
            write_facts(cache.root, key, ModelFacts.of(model, tensors=scorer.weights))
    return scorer


def _device(config: BenchmarkConfig) -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and config.gpus else "cpu"


def _training_record(entry: ModelEntry) -> TrainingRecord | None:
    """What the entry's model was trained on; the weights of a blend at alpha 0 are those of its base only."""
    from his2lip.models import TrainingRecord, training_record

    blended = entry.blend
    names = [entry.path] if blended is None or blended.alpha > 0 else []
    names += [blended.base] if blended is not None and blended.alpha < 1 else []
    return TrainingRecord.union(map(training_record, names))
