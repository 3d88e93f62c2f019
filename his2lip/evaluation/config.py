"""Configuration of a benchmark: models, datasets, protocols, and where results are stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from his2lip.config import NAME, Config, OptionError
from his2lip.errors import did_you_mean
from his2lip.evaluation.perturbations import LEVELS, PerturbationKind, refusal
from his2lip.evaluation.prompts import dataset_and_protocol
from his2lip.models import name_of
from his2lip.resources import CACHE, STORAGE
from his2lip.runtime import usable_cpus

PREFIX = "baseline:"  # start of the names of baselines, which need no model
PAPER_PROTOCOL = "paper"  # the only protocol that is compared with published figures
DEFAULT_PROTOCOL = "default"  # the protocol that is scored where none is named, and that counts in means
PROBE_PREFIX = "probe:"  # start of the names of probes, which are fitted on labels
OWN_POOL = "own"  # the pool of a protocol's own prompts; the benchmark names further ones
_CPU_BATCH, _GPU_BATCH = 64, 256  # what `batch_size: auto` stands for
TASK_NAMES = ("retrieval", "robustness")  # the sections of a benchmark that are tasks beside its protocols


Control = Literal["shuffled-labels", "empty-prompts"]
ProbeKind = Literal["knn", "logistic"]


class Blend(Config):
    """A point between two models' weights (WiSE-FT, Wortsman et al. 2022)."""

    sweep: str
    """Name of the curve; rows with the same name are points of one curve."""
    base: str
    """The model at alpha 0, as `load_model` takes it; the row's own model is at alpha 1."""
    alpha: float = pydantic.Field(ge=0, le=1)
    """Position between the two models."""


class Probe(Config):
    """One classifier that is fitted on the embeddings of a model."""

    kind: ProbeKind
    shots: int | None = None
    """Labelled units per class; null: all."""
    draw: int = 0
    """Number of the random draw of these units."""

    @property
    def label(self) -> str:
        """Such as `probe:knn`, or `probe:knn 4-shot`."""
        return f"{PROBE_PREFIX}{self.kind}" + (f" {self.shots}-shot" if self.shots else "")


class ProbesConfig(Config):
    """Classifiers that are fitted on the frozen embeddings of each model, on labels."""

    kinds: list[ProbeKind] = ["knn", "logistic"]
    """k nearest neighbours, logistic regression."""
    shots: list[Annotated[int, pydantic.Field(ge=1)] | Literal["full"]] = [1, 2, 4, 8, 16, "full"]
    """Labelled units per class of each probe; full: all."""
    draws: int = pydantic.Field(default=5, ge=2)
    """Random draws of the labelled units of a few-shot probe. Its row shows their mean."""

    def probes(self) -> list[Probe]:
        """All probes, each draw of the labelled units as one."""
        return [
            Probe(kind=kind, shots=None if shots == "full" else shots, draw=draw)
            for kind in self.kinds
            for shots in self.shots
            for draw in range(1 if shots == "full" else self.draws)
        ]


class ModelEntry(Config):
    """One row of the leaderboard."""

    name: str
    """Name on the leaderboard."""
    path: str
    """The model, as `load_model` takes it: a name, a checkpoint's folder, or an MLflow URI."""
    blend: Blend | None = None
    trained_on: list[str] | None = None
    """Names of the datasets that it was trained on; null: as its checkpoint says."""
    seeds_of: str | None = None
    """The row of all trainings that differ from this one only in their seed; {seeds: [RUN, RUN], name: NAME}
    of the benchmark adds them."""
    control: Control | None = None
    """Scores the model under a negative control; `controls` of the benchmark adds these rows."""
    probe: Probe | None = None
    """Fits a classifier on the model's embeddings; `probes` of the benchmark adds these rows."""

    @property
    def loads(self) -> list[str]:
        """The names of the models that the row loads: one, or the two of a blend."""
        return [self.path] if self.blend is None else [self.path, self.blend.base]


class TaskConfig(Config):
    """A task beside the protocols, on the same embeddings."""

    datasets: list[str] | None = None
    """Those of the benchmark's datasets that have the task; null: all."""
    protocol: str = DEFAULT_PROTOCOL
    """The protocol of each card that gives the split, the view, the preprocessing and the scoring."""


class RetrievalConfig(TaskConfig):
    """Retrieval between images and held-out captions, in all four directions."""

    captions: str
    """The caption bank that has the held-out captions: a file of `his2lip data prepare captions`, or a folder
    with TISSUE/BIOMARKER.txt."""
    most_images: int = pydantic.Field(default=2000, ge=2)
    """Largest number of images of each dataset; `seed` draws them where there are more."""
    most_captions: int = pydantic.Field(default=2000, ge=2)
    """Largest number of held-out captions; `seed` draws them where there are more."""
    seed: int = 0
    """Seed of what is drawn."""


class RobustnessConfig(TaskConfig):
    """Zero-shot classification of perturbed images, by the protocol's prompts."""

    most_units: int = pydantic.Field(default=500, ge=2)
    """Largest number of units of each dataset; `seed` draws them where there are more. Each unit is embedded
    once per level."""
    perturbations: dict[PerturbationKind, list[float]] = {
        kind: list(levels) for kind, levels in LEVELS.items()
    }
    """Levels, from weak to strong: stain-intensity (factor 1 + level), stain-hue (degrees), AEC (1: its
    vector in place of DAB's), JPEG (quality), blur (pixels), downscaling (factor)."""
    errors: int = pydantic.Field(default=24, ge=0)
    """The most confident errors without a perturbation that are kept with a thumbnail, for a page on this
    machine. Thumbnails are never sent to MLflow."""
    seed: int = 0
    """Seed of the units, and of what is random in a perturbation of an image."""

    @pydantic.field_validator("perturbations")
    @classmethod
    def _check_levels(cls, given: dict[PerturbationKind, list[float]]) -> dict[PerturbationKind, list[float]]:
        for kind, levels in given.items():
            for level in levels:
                if (why := refusal(kind, level)) is not None:
                    raise ValueError(why)
            if len(set(levels)) != len(levels):
                raise ValueError(f"{kind} has a level twice")
        return given


class BenchmarkConfig(Config):
    """One benchmark: models x datasets x protocols."""

    name: str = pydantic.Field(default="zero-shot", pattern=NAME)
    """Name of the benchmark, and of its folder under STORAGE/benchmark."""
    models: list[ModelEntry]
    """Models to score: names, mappings of name and path, or {blend: [BASE, TUNED], alphas: [0, 0.5, 1]}. A
    checkpoint without a name has that of its run; with several of one run, RUN@7, RUN@best."""
    datasets: list[str] | dict[str, str] = pydantic.Field(min_length=1)
    """Names of dataset cards, or a mapping of names to the URIs of their shards."""
    shards: str = f"{STORAGE}/shards"
    """Folder or URI that has the shards of each dataset, in a folder of its name."""
    protocols: list[str] = [DEFAULT_PROTOCOL]
    """Protocols of the cards to score by; a dataset that lacks one is not scored by it."""
    role: Literal["select"] | None = None
    """select: score the split of each dataset that has this role, to choose a model by (`models promote
    --best`); a dataset that has none is left out. null: the split of each protocol."""
    retrieval: RetrievalConfig | None = None
    """Retrieval, beside the protocols or, with `protocols: []`, in place of them; null: none."""
    robustness: RobustnessConfig | None = None
    """Figures on perturbed images, beside the protocols or in place of them; null: none."""
    baselines: list[Literal["chance", "majority", "mean-colour", "stained-area", "dab-threshold"]] = [
        "chance",
        "majority",
    ]
    """Baselines that need no model."""
    controls: list[Control] = []
    """Negative controls, a row for each model: shuffled-labels, whose figures must be those of chance, and
    empty-prompts, under which all classes tie."""
    probes: ProbesConfig | None = None
    """Classifiers fitted on the embeddings of each model, as rows `probe:KIND of MODEL`. They read labels of
    the train split, or of other cases of the scored split, so they are not zero-shot and in no mean. {} runs
    all of them; null: none."""
    reference: str | None = None
    """Name of a row, a model or `baseline:NAME`: the board shows the difference of every model from it."""
    margin: float | None = pydantic.Field(default=None, gt=0, lt=1)
    """Non-inferiority: a model that surely loses less than this, as a fraction, counts as no worse."""
    prompts: dict[str, str] = {}
    """Prompt set by DATASET or DATASET/PROTOCOL, in place of the card's: a name or a file."""
    pools: dict[str, dict[str, str]] = {}
    """Further prompt pools by name, such as released sentences: DATASET or DATASET/PROTOCOL -> prompt set.
    Each is scored beside the protocol's own pool, and the order of two models must hold in all."""
    calibration: bool = False
    """Also measure calibration: a temperature is fitted to each model on the dataset's `select` split, and
    its figures are measured on the scored units. Images of that split are embedded too."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision in which models embed. bf16: with weights in bf16, which is faster on a CPU that has bf16
    matrix products (`amx_bf16` in /proc/cpuinfo); features differ by about 1 % of their length."""
    batch_size: Annotated[int, pydantic.Field(ge=1)] | Literal["auto"] = "auto"
    """Images per batch; auto: 64 on a CPU (where each thread encodes 8 at a time), 256 on a GPU."""
    cpus: Annotated[float, pydantic.Field(ge=0)] | Literal["auto"] = "auto"
    """CPUs of the task of one model, and of each of its helpers; auto: a share by which all tasks together
    keep the cores busy. board.json has the numbers that `auto` stood for."""
    helpers: Annotated[int, pydantic.Field(ge=0)] | Literal["auto"] = "auto"
    """Processes beside the task of a model that embed parts of its images; auto: as many as fit the free
    CPUs and GPUs, where the work pays for them. On a cluster that starts machines on demand, set a number."""
    threads: int | None = pydantic.Field(default=None, ge=1)
    """Threads of one task; null: as many as `cpus`."""
    gpus: float | Literal["auto"] = "auto"
    """GPUs of one task. A fraction lets several tasks share a GPU; auto: one where the cluster has any."""
    memory_gb: float | None = pydantic.Field(default=None, gt=0)
    """Memory of one task; null: estimated from the size of the checkpoint."""
    seed: int = 0
    """Seed of random weights (`tiny`)."""
    cache: str = CACHE
    """Folder or URI of cached embeddings."""
    storage: str = STORAGE
    """Folder or URI of results."""

    @pydantic.field_validator(
        "models", mode="before", json_schema_input_type=list[str | ModelEntry | dict[str, Any]]
    )
    @classmethod
    def _short_forms(cls, entries: Any) -> Any:
        """`clip` is {name: clip, path: clip}; {blend: [clip, RUN], alphas: [0, 0.5, 1]} is three models."""
        if not isinstance(entries, list):
            return entries
        return [model for e in _named(entries) for model in _models(e)]

    @pydantic.model_validator(mode="after")
    def _names_differ(self) -> BenchmarkConfig:
        names = [row.name for model in self.models for row in self.rows_of(model)]
        names += [f"{PREFIX}{b}" for b in self.baselines]
        if OWN_POOL in self.pools:
            what = f"'{OWN_POOL}' is the pool of the protocol's own prompts; give this pool another name"
            raise OptionError(what, key="pools")
        if twice := {n for n in names if names.count(n) > 1}:
            what = f"two models are called '{min(twice)}'; give each another name"
            raise OptionError(what, key="models")
        if not self.protocols and not self.tasks():
            raise OptionError("there is no protocol, and no task in place of one", key="protocols")
        known = list(self.uris())
        for section_key, key in self.prompt_keys():
            if (dataset := dataset_and_protocol(key, known)[0]) not in known:
                what = f"the benchmark has no dataset '{dataset}'; {did_you_mean(dataset, known)}"
                raise OptionError(what, key=f"{section_key}.{key}")
        for task, section in self.tasks().items():
            if unknown := [name for name in section.datasets or () if name not in known]:
                what = f"the benchmark has no dataset '{unknown[0]}'; {did_you_mean(unknown[0], known)}"
                raise OptionError(what, key=f"{task}.datasets")
        if self.reference is not None and self.reference not in names:
            what = f"no row is called '{self.reference}'; {did_you_mean(self.reference, names)}"
            raise OptionError(what, key="reference")
        return self

    def rows_of(self, model: ModelEntry) -> list[ModelEntry]:
        """The row of a model, those of its negative controls and those of its probes."""
        controls = [
            {"name": f"{PREFIX}{control} of {model.name}", "control": control, "seeds_of": None}
            for control in self.controls
        ]
        probes = [] if self.probes is None else self.probes.probes()
        rows = [*controls, *(_probe_row(model, probe) for probe in probes)]
        return [model, *(model.model_copy(update=row) for row in rows)]

    def tasks(self) -> dict[str, TaskConfig]:
        """The tasks that the benchmark has beside its protocols, by name."""
        sections: dict[str, TaskConfig | None] = {name: getattr(self, name) for name in TASK_NAMES}
        return {name: section for name, section in sections.items() if section is not None}

    def prompt_keys(self) -> list[tuple[str, str]]:
        """Every DATASET or DATASET/PROTOCOL that is given a prompt set, with the key of its mapping."""
        mappings = {"prompts": self.prompts} | {f"pools.{name}": pool for name, pool in self.pools.items()}
        return [(name, key) for name, mapping in mappings.items() for key in mapping]

    @property
    def folder(self) -> str:
        return f"{self.storage}/benchmark/{self.name}"

    @property
    def task_threads(self) -> int:
        """Threads that decode images, and threads of torch, in the task of one model."""
        return self.threads or max(1, round(usable_cpus() if self.cpus == "auto" else self.cpus))

    @property
    def task_batch(self) -> int:
        """Images per forward pass."""
        if self.batch_size == "auto":
            return _CPU_BATCH if self.gpus in (0, "auto") else _GPU_BATCH
        return self.batch_size

    def uris(self) -> dict[str, str]:
        """Dataset -> URI of its shards."""
        if isinstance(self.datasets, dict):
            return self.datasets
        return {name: f"{self.shards}/{name}" for name in self.datasets}


def _probe_row(model: ModelEntry, probe: Probe) -> dict[str, Any]:
    """What differs from the model's own row. Draws of one probe are shown as one row, as seeds are."""
    if probe.shots is None:
        seeds_of = None if model.seeds_of is None else f"{probe.label} of {model.seeds_of}"
        return {"name": f"{probe.label} of {model.name}", "probe": probe, "seeds_of": seeds_of}
    name = f"{probe.label} of {model.name}"
    return {"name": f"{name} draw {probe.draw + 1}", "probe": probe, "seeds_of": name}


def _models(entry: Any) -> list[Any]:
    """The models that one entry of `models` means; other forms are left to the validation."""
    if isinstance(entry, dict) and "seeds" in entry:
        return _trainings(entry)
    if not isinstance(entry, dict) or "alphas" not in entry:
        return [entry]
    unknown = set(entry) - {"blend", "alphas", "name", "trained_on"}
    pair, alphas = entry.get("blend"), entry["alphas"]
    if unknown or not isinstance(pair, list) or len(pair) != 2 or not isinstance(alphas, list) or not alphas:
        what = "a sweep of alpha must be {blend: [BASE, TUNED], alphas: [0, 0.5, 1], name: NAME}"
        raise OptionError(what, key="alphas")
    base, tuned = pair
    sweep = entry.get("name") or name_of(str(tuned))[0]
    row = {"path": tuned} | {key: entry[key] for key in ("trained_on",) if key in entry}
    blends = [{"sweep": sweep, "base": base, "alpha": alpha} for alpha in alphas]
    return [row | {"name": f"{sweep} alpha={blend['alpha']}", "blend": blend} for blend in blends]


def _trainings(entry: dict[str, Any]) -> list[Any]:
    """The rows of one model that was trained with several seeds."""
    paths, name = entry["seeds"], entry.get("name")
    known = set(entry) <= {"seeds", "name", "trained_on"} and isinstance(paths, list) and len(paths) > 1
    if not known or not isinstance(name, str):
        what = "trainings with several seeds must be {seeds: [RUN, RUN, …], name: NAME}"
        raise OptionError(what, key="seeds")
    row = {"seeds_of": name} | {key: entry[key] for key in ("trained_on",) if key in entry}
    return [row | {"name": f"{name} seed {i}", "path": path} for i, path in enumerate(paths, start=1)]


def _named(entries: list[Any]) -> list[Any]:
    """The entries, with the names of those that are only a path: NAME of their run, or NAME@7 for several."""
    names = {i: name_of(e) for i, e in enumerate(entries) if isinstance(e, str)}
    short = [name for name, _ in names.values()]
    named = []
    for i, entry in enumerate(entries):
        if i in names:
            name, which = names[i]
            entry = {"name": f"{name}@{which}" if which and short.count(name) > 1 else name, "path": entry}
        named.append(entry)
    return named
