"""A probe of a dual encoder as a scorer of the grid."""

from __future__ import annotations

from his2lip.config import digest
from his2lip.data.shards import open_shards
from his2lip.evaluation.config import Probe
from his2lip.evaluation.grid_cell import CellPlan, Plan, Scored
from his2lip.evaluation.overlap import Overlap
from his2lip.evaluation.probes import VERSION, fitted_scores
from his2lip.evaluation.protocols import select
from his2lip.evaluation.scorers import ModelScorer
from his2lip.evaluation.sight import Sight
from his2lip.evaluation.zero_shot import Scores


class ProbeScorer:
    """One probe of one model. It reads cached features, so no image is embedded a second time."""

    uses_prompts = False

    def __init__(self, name: str, model: ModelScorer, probe: Probe) -> None:
        self.name = name
        self.weights = f"{probe.label} of {model.weights}"  # not the model's, whose scores these are not
        self._model, self._probe = model, probe

    def identity(self, plan: Plan) -> str:
        assert isinstance(plan, CellPlan)
        return digest(
            {
                "probe": self._probe.model_dump(),
                "version": VERSION,
                "model": self._model.identity(plan),
                "data": plan.data_digest,
                "train": None if plan.labelled is None else plan.labelled.split,
            }
        )

    def trained_on(self, plan: Plan) -> bool:
        return self._model.trained_on(plan)

    def overlap(self, plan: Plan) -> Overlap | None:
        return self._model.overlap(plan)

    def cut_prompts(self, plan: CellPlan) -> None:
        return None

    def sight(self, plan: CellPlan) -> Sight:
        return self._model.sight(plan)

    def score(self, plan: CellPlan) -> Scored:
        """Probabilities of the classes. The plan must have labelled units that the probe can be fitted on."""
        source, probe, train = plan.labelled, self._probe, None
        assert source is not None
        assert source.refuses(probe) is None
        if source.split is not None:
            known = select(open_shards(plan.uri), plan.protocol, split=source.split)
            train = known, self._model.features(plan, source.split, known)
        features = self._model.features(plan, plan.protocol.split, plan.selection)
        scores = fitted_scores(
            probe.kind, plan.selection, features, train=train, shots=probe.shots, draw=probe.draw
        )
        caveat = source.describe(probe.kind, probe.shots, plan.selection.clusters.kind)
        device = self._model.device.partition(":")[0]
        return Scored(Scores.of(scores), caveat=caveat, device=device)
