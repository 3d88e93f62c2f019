"""The objective of `his2lip tune`: one training run in the trial's process, scored on a select split."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from his2lip.config import set_values, validate
from his2lip.data.shards import open_shards, resolve_split
from his2lip.errors import ConfigError, DivergedError
from his2lip.files import remove_folder
from his2lip.logs import logged_elsewhere
from his2lip.resources import code_version
from his2lip.runtime import check_code, usable_cpus
from his2lip.training import SharedFolder, TrainConfig
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.space import Scalar, corners, dotted_keys
from his2lip.tuning.sweep_directory import BEST, SweepDir, open_sweep
from his2lip.tuning.trial import TrialReporter

if TYPE_CHECKING:
    from his2lip.models import DualEncoder
    from his2lip.training import StepReport

    Validator = Callable[[DualEncoder], Mapping[str, float]]

# The metrics that a sweep can choose by, each with the `checkpoint.select_by` that keeps its best checkpoint.
SelectBy = Literal["macro_f1", "retrieval", "loss"]
SELECT_BY: dict[str, SelectBy] = {
    "select/macro_f1": "macro_f1",
    "select/retrieval": "retrieval",
    "select/loss": "loss",
}

# Options that are one for all trials, each with the option of the sweep that sets it.
_OF_THE_SWEEP = {
    "data.select": "split",
    "checkpoint.select_by": "metric",
    "data.protocol": "train.data.protocol",
    "data.select_captions": "train.data.select_captions",
}
# Options of the data that do not change the batches of the select split, whose loss is measured: the loss of
# N pairs is near log N, and depends on their captions.
_OF_TRAINING = (
    "data.split",
    "data.balance",
    "data.augment.",
    "data.caption_dropout",
    "data.loader",
    "data.decode_threads",
)
_OF_TARGETS = ("loss.tau", "loss.similarity.")
_NOT_RELEASED = (*_OF_TARGETS, "loss.kappa", "loss.normalize")  # options that the released loss ignores
_PLACES = ("data.shards", "data.captions", "model.backbone")  # options whose values may be paths


@dataclass(frozen=True)
class TrainingObjective:
    """Trains `base` with the parameters of a trial. It is picklable and called in the process of the trial.

    validator  computes zero-shot metrics of a model on the select split, as for `training.train`
    inputs     what the trials depend on besides the configuration of the sweep, for `run_sweep`
    contents   what each trial has to find in its places, as `training.contents`
    moved      (key, value) of a place that the space varies -> the place for processes in other folders
    code       the version of the code that the processes of the trials have to be
    concurrent  trials that run at the same time, which share the cores where `auto` stands for threads
    sweep      where the trials are
    shared     bytes of decoded batches that the trials of one machine share
    """

    base: TrainConfig
    validator: Validator | None
    inputs: dict[str, Any]
    contents: Mapping[tuple[str, str], str] = field(default_factory=dict)
    moved: Mapping[tuple[str, Scalar], str] = field(default_factory=dict)
    code: str = field(default_factory=code_version)
    concurrent: int = 1
    sweep: SweepDir = field(kw_only=True)
    shared: int = field(kw_only=True)

    def config(self, params: Mapping[str, Scalar]) -> TrainConfig:
        """The training run of a trial. Raises ConfigError where its parameters do not fit together."""
        there = {key: self.moved.get((key, value), value) for key, value in params.items()}
        tree = set_values(self.base.model_dump(mode="json"), there)
        return validate(TrainConfig, tree, where=f"trial {dict(params)}")

    @property
    def places(self) -> list[str]:
        """Folders and files that the trials read."""
        from his2lip.training import places

        return [*places(self.base), *self.moved.values()]

    def __call__(self, params: dict[str, Any], report: TrialReporter) -> None:
        check_code(self.code)
        config = self.config(params)
        run = self._on_workers if config.workers.num > 1 else self._in_process
        try:
            run(config, report)
        except DivergedError:
            # The parameters are bad, which the sampler has to know.
            report({metric: float("nan") for metric in SELECT_BY})

    def _in_process(self, config: TrainConfig, report: TrialReporter) -> None:
        """Trains in this process, with the decoded patches and the untrained model of earlier trials."""
        from his2lip.training import RunDir, run_in_process

        batches = self.sweep.scratch / f"batches-{socket.gethostname()}"
        try:
            run_in_process(
                config,
                report=report,
                validate=self.validator,
                folder=report.folder,
                device=_device(config),
                contents=self.contents,
                cores=min(usable_cpus(), self._cores()),
                shared=SharedFolder(batches, self.shared) if self.shared else None,
            )
        finally:
            # A trial is never resumed, and the optimizer's state is twice as large as the model.
            shutil.rmtree(RunDir(report.folder).last, ignore_errors=True)

    def _on_workers(self, config: TrainConfig, report: TrialReporter) -> None:
        """Trains on Ray Train's workers, which take 15 to 20 s per trial to start.

        The best checkpoint is in the trial's folder before the report of its epoch: a trial that the report
        stops may be ended at once.
        """
        from his2lip.training import check_contents, open_data, open_run, train, with_numbers

        check_contents(self.contents, *open_data(config))
        storage = self.sweep.trial_storage(report.folder.name)
        best = report.folder / BEST
        # A repeat starts over: its reports are counted, and a resumed run would not repeat the first ones.
        remove_folder(f"{storage}/train")
        run_dir = open_run(storage, "run")

        def on_report(progress: StepReport) -> bool:
            if progress.kind == "step":
                return False
            if progress.best:
                shutil.rmtree(best, ignore_errors=True)
                run_dir.copy_best(best)
            return report(progress.metrics)

        threads = max(1, self._cores() // config.workers.num)
        run = with_numbers(config, threads=threads, decode_threads=threads)
        run = run.model_copy(update={"name": "run", "storage": storage})
        with logged_elsewhere():
            done = train(run, validator=self.validator, on_report=on_report)
        shutil.rmtree(done.run_dir, ignore_errors=True)
        remove_folder(f"{storage}/train")

    def _cores(self) -> int:
        """CPUs of the cluster for one trial, at least one."""
        import ray

        have = ray.cluster_resources().get("CPU", 1) if ray.is_initialized() else usable_cpus()
        return max(1, int(have) // self.concurrent)


def training_objective(
    config: SweepConfig, *, make_validator: Callable[[TrainConfig], Validator | None] = lambda base: None
) -> TrainingObjective:
    """The objective of a sweep, after all checks that are possible before the first trial.

    Raises ConfigError for a key that training does not have, and for a point or an end of a range that it
    refuses; DatasetError where the data cannot be read or a sweep must not choose by the split.
    """
    from his2lip.training import contents, identity, open_data, with_absolute_paths

    config.check_keys(dotted_keys(TrainConfig))
    base = with_absolute_paths(_base(config))
    resolve_split(open_shards(base.data.shards), config.split, roles=("select",), key="split")
    base, shards, bank = open_data(base)
    validator = make_validator(base)
    made_of = identity(base, shards, bank, validator=validator)["made_of"]
    inputs = {("train" if key == "config" else key): value for key, value in made_of.items()}
    found = contents(base, shards, bank)
    objective = TrainingObjective(
        base,
        validator,
        inputs,
        found,
        concurrent=config.max_concurrent,
        sweep=open_sweep(config.storage, config.name),
        shared=int(config.shared_gb * 2**30),
    )
    for params in (*config.all_points, *corners(config.dimensions)):
        objective.config(params)
    return _with_varied_places(objective, config)


def _with_varied_places(objective: TrainingObjective, config: SweepConfig) -> TrainingObjective:
    """The objective with the places that the space varies as absolute paths, and with their contents.

    The contents are inputs of the sweep too: a path says nothing about them.
    """
    from his2lip.training import contents, open_data, with_absolute_paths

    found, moved = dict(objective.contents), {}
    for key, value in _varied_places(config):
        section, name = key.split(".")
        run = with_absolute_paths(objective.config({key: value}))
        moved[key, value] = place = getattr(getattr(run, section), name)
        found[key, place] = contents(*open_data(run))[key, place]
    varied = {f"{key}={value}": found[key, place] for (key, value), place in moved.items()}
    inputs = objective.inputs | ({"varied": varied} if varied else {})
    return replace(objective, inputs=inputs, contents=found, moved=moved)


def _varied_places(config: SweepConfig) -> list[tuple[str, Scalar]]:
    """(key, value) of each place that the space chooses from or a point names, each once."""
    chosen = [
        (key, value) for key, kind in config.dimensions.items() for value in getattr(kind, "values", ())
    ]
    named = [pair for point in config.points for pair in point.items()]
    return [pair for pair in dict.fromkeys([*chosen, *named]) if pair[0] in _PLACES]


def _base(config: SweepConfig) -> TrainConfig:
    """The training options that trials start from, with the split and the metric of the sweep."""
    for metric in config.metrics:
        if metric not in SELECT_BY:
            what = f"a sweep chooses by {' or '.join(SELECT_BY)}, not by '{metric}'"
            raise ConfigError(what, where=config.name, key="metric")
    first, by_loss = config.metrics[0], "select/loss" in config.metrics
    if by_loss and len(config.metrics) > 1:
        what = "select/loss is minimised and the other metrics are maximised"
        raise ConfigError(what, where=config.name, key="metric", fix="leave select/loss out")
    for key in config.dimensions:
        if (own := _OF_THE_SWEEP.get(key)) is not None:
            what = f"'{key}' is one for all trials, so the space cannot vary it"
            raise ConfigError(what, where=config.name, key=key, fix=f"set {own} in its place")
    varied = [key for key in config.dimensions if _changes_the_loss(key)]
    if by_loss and varied:
        raise ConfigError(
            f"'{first}' cannot be compared between different values of {varied[0]}",
            where=config.name,
            key="metric",
            fix="set metric to select/macro_f1",
        )
    if config.mode != ("min" if by_loss else "max"):
        what = f"mode {config.mode} would choose the worst {first}"
        raise ConfigError(what, where=config.name, key="mode")
    tree = set_values(
        config.train,
        {
            "name": config.name,
            "storage": config.storage,
            "data.select": config.split,
            "checkpoint.select_by": SELECT_BY[first],
        },
    )
    made = validate(TrainConfig, tree, where=f"sweep {config.name}, key train")
    if "select/retrieval" in config.metrics and not made.data.select_captions:
        what, fix = (
            "select/retrieval needs captions that training leaves out",
            "set train.data.select_captions=0.2",
        )
        raise ConfigError(what, where=config.name, key="metric", fix=fix)
    for key in config.dimensions:
        reason = _without_effect(key, made)
        if reason is not None and reason not in config.dimensions:
            what = f"'{key}' has no effect with this train.{reason}"
            raise ConfigError(what, where=config.name, key=key, fix="leave one of the two out")
    texts = [key for key in config.dimensions if key in ("data.captions", "data.staining")]
    if made.data.select_captions and texts:
        what = f"with other {texts[0]}, trials would train on captions that data.select_captions leaves out"
        fix = f"set train.data.select_captions=0, or leave {texts[0]} out of the space"
        raise ConfigError(what, where=config.name, key=texts[0], fix=fix)
    return made


def _without_effect(key: str, config: TrainConfig) -> str | None:
    """The option by whose value another one has no effect; None where it has one."""
    loss, (_, _, name) = config.loss, key.rpartition(".")
    if key == "optim.epochs" and config.optim.steps is not None:
        return "optim.steps"
    if loss.variant == "released" and key.startswith(_NOT_RELEASED):
        return "loss.variant"
    if loss.terms == "hard" and key.startswith(_OF_TARGETS):
        return "loss.terms"
    if key.startswith("loss.weights."):
        kept = loss.weights.model_copy(update={name: 1.0}).keep(loss.terms)
        return None if getattr(kept, name) else "loss.terms"
    return None


def _changes_the_loss(key: str) -> bool:
    """Whether trials with different values of an option have different losses with the same weights."""
    return key.startswith("loss.") or (key.startswith("data.") and not key.startswith(_OF_TRAINING))


def _device(config: TrainConfig) -> str:
    """cuda where Ray gave this trial a GPU and it may use one, else cpu."""
    import ray

    assigned = ray.get_gpu_ids() if ray.is_initialized() else []
    if config.workers.use_gpu is True and not assigned:
        raise ConfigError(
            "workers.use_gpu is true, but this trial has no GPU",
            where=config.name,
            key="gpus",
            fix="set gpus=1",
        )
    return "cuda" if assigned and config.workers.use_gpu else "cpu"
