"""Negative controls: a model on labels or prompts without information, which must score as chance does."""

from __future__ import annotations

from dataclasses import replace

from his2lip.config import digest
from his2lip.evaluation.config import Control
from his2lip.evaluation.grid_cell import CellPlan, Plan, Scored, Scorer
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.random_tables import TABLES, RandomTables, seed_of
from his2lip.evaluation.sight import Sight

_CAVEATS: dict[Control, str] = {
    "shuffled-labels": f"control: mean over {TABLES:,} shuffles of the labels; the limits hold 95 % of them",
    "empty-prompts": "control: each class has one empty sentence, so all tie and the first is predicted",
}


class ControlScorer:
    """A model under one control, as a scorer of the grid."""

    def __init__(self, name: str, model: Scorer, control: Control) -> None:
        self.name = name
        self.weights = f"{control} of {model.weights}"  # not the model's, whose scores these are not
        self.uses_prompts = model.uses_prompts
        self._model, self._control = model, control

    def plan(self, plan: CellPlan) -> CellPlan:
        """The plan as the control scores it."""
        if self._control == "shuffled-labels":
            return replace(plan, pools={})
        empty = PromptSet("empty", tuple((label, ("",)) for label in plan.prompts.classes))
        return replace(plan, pools={}, prompts=empty)

    def identity(self, plan: Plan) -> str:
        return digest({"control": self._control, "model": self._model.identity(plan)})

    def trained_on(self, plan: Plan) -> bool:
        return False  # only models are marked as in-domain

    def overlap(self, plan: Plan) -> None:
        return None  # nor counted

    def cut_prompts(self, plan: CellPlan) -> int | None:
        return self._model.cut_prompts(plan)

    def sight(self, plan: CellPlan) -> Sight:
        return self._model.sight(plan)

    def score(self, plan: CellPlan) -> Scored:
        found = self._model.score(plan)
        scores, device = found.scores, found.device
        caveat = _CAVEATS[self._control]
        if self._control == "empty-prompts":
            return Scored(scores, caveat=caveat, device=device)
        scored = plan.selection.scored
        labels, predicted = plan.selection.labels[scored], scores.predicted[scored]
        seed = seed_of(plan.selection.split_sha256)
        tables = RandomTables.shuffled(labels, predicted, len(plan.selection.classes), seed=seed)
        return Scored(scores, caveat=caveat, tables=tables, device=device)
