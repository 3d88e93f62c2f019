"""MLflow's table of the models of a benchmark: what it shows, and the link that opens it.

MLflow keeps what a shared table shows in a tag of the experiment, which the link names. The keys of the state
are those of version 3.17.2 (useSharedExperimentViewState and ExperimentPageUIState in mlflow/server/js).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

if TYPE_CHECKING:
    from mlflow import MlflowClient

KIND = "his2lip.kind"  # tag of a run that has all figures of one model of a benchmark
MODEL_RUN = "model"
_STATE = "mlflow.sharedViewState.his2lip-"
_TRAINING = "machine_learning"  # MLflow's view of model training; its other view is for agents
_MODELS = "attributes.`Models`"  # ids of columns that MLflow makes
_FIRST, _LAST = ("attributes.`Run Name`", "runDateAndNestInfo"), "duration"
_PX_PER_LETTER, _PX_AROUND = 7, 34


@dataclass(frozen=True, kw_only=True)
class Column:
    """A metric or parameter of the runs; `letters` is the length of its longest value."""

    name: str
    is_metric: bool
    letters: int

    @property
    def id(self) -> str:
        return f"{'metrics' if self.is_metric else 'params'}.`{self.name}`"

    @property
    def width(self) -> int:
        """Width in CSS pixels at which name and values can be read."""
        return _PX_AROUND + _PX_PER_LETTER * max(len(self.name), self.letters)


@dataclass(frozen=True, kw_only=True)
class Table:
    """The table of one benchmark; `link` follows the address of MLflow's server."""

    benchmark: str
    link: str


def view_state(
    benchmark: str, parent: str, columns: Sequence[Column], *, sort: str, time: int
) -> tuple[str, str]:
    """The experiment's tag, name and value, by which MLflow shows the models of the run `parent`.

    sort  the metric that orders the rows, the greatest first
    time  of the benchmark, in milliseconds since 1970
    """
    ids = [column.id for column in columns]
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}' AND tags.`{KIND}` = '{MODEL_RUN}'",
        "orderByKey": f"metrics.`{sort}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [*ids, _MODELS],
        "columnOrder": [*_FIRST, *ids, _MODELS, _LAST],
        "columnWidths": {column.id: column.width for column in columns},
        "his2lip": {"benchmark": benchmark, "time": time},  # MLflow reads the keys that it knows
    }
    return _STATE + _key(benchmark), json.dumps(state, separators=(",", ":"))


def tables(client: MlflowClient, experiment: str) -> list[Table]:
    """The tables of the benchmarks in an experiment, that of the latest benchmark first."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    ours = [json.loads(state)["his2lip"] for tag, state in found.tags.items() if tag.startswith(_STATE)]
    names = [own["benchmark"] for own in sorted(ours, key=lambda own: -own["time"])]
    return [Table(benchmark=name, link=_link(found.experiment_id, name)) for name in names]


def _link(experiment_id: str, benchmark: str) -> str:
    key = _STATE.removeprefix("mlflow.sharedViewState.") + _key(benchmark)
    query = urlencode({"viewStateShareKey": key, "workflowType": _TRAINING})
    return f"/#/experiments/{experiment_id}/runs?{query}"


def _key(benchmark: str) -> str:
    """A benchmark's name with the signs that MLflow allows in a tag."""
    return re.sub(r"[^\w\-.]", "_", benchmark)[:200]
