"""What a benchmark's `auto` means on this cluster, and the resources of each of its tasks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from his2lip.errors import RunError
from his2lip.evaluation.config import PREFIX, BenchmarkConfig, ModelEntry
from his2lip.models import folder_of
from his2lip.runtime import is_local

_log = logging.getLogger(__name__)

_MOST_THREADS = 8.0  # of the task of one model on a CPU, where `cpus` is auto


def with_numbers(config: BenchmarkConfig) -> BenchmarkConfig:
    """The same benchmark with numbers for this cluster in place of `auto`."""
    import ray

    config = config.model_copy(update={"gpus": _gpus(config)})
    if config.cpus == "auto":
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = task_cpus(nodes, len(config.models), gpus=float(config.gpus))
        config = config.model_copy(update={"cpus": cpus})
    config = config.model_copy(update={"batch_size": config.task_batch})
    _log.info("benchmark %s: each task has %s", config.name, numbers(config))
    return config


def numbers(config: BenchmarkConfig) -> dict[str, float]:
    """What `auto` stood for, by option."""
    return {
        "batch_size": float(config.batch_size),
        "cpus": float(config.cpus),
        "gpus": float(config.gpus),
        "threads": float(config.task_threads),
    }


def task_cpus(nodes: Sequence[Mapping[str, float]], models: int, *, gpus: float) -> float:
    """The CPUs of one task, so that the tasks of all models together have those of the cluster.

    nodes   the Ray resources of each machine
    models  tasks that may run at the same time
    gpus    GPUs of one task
    At most the share of a machine that its GPUs leave to each task, or `_MOST_THREADS` without GPUs: helpers
    on the other cores are then faster than more threads. At least one.
    """
    sizes = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
    if gpus:
        sizes = [(cpu, gpu) for cpu, gpu in sizes if gpu]
        at_once = max(1, min(models, int(sum(gpu for _, gpu in sizes) / gpus)))
        most = max((cpu / max(1.0, gpu / gpus) for cpu, gpu in sizes), default=1.0)
    else:
        at_once = max(1, models)
        most = min(_MOST_THREADS, max((cpu for cpu, _ in sizes), default=1.0))
    share = sum(cpu for cpu, _ in sizes) // at_once
    return float(max(1, int(min(share, most))))


def _gpus(config: BenchmarkConfig) -> float:
    """GPUs of the task of one model. Raises RunError for more GPUs than a single machine has."""
    import ray

    have = ray.cluster_resources().get("GPU", 0.0)
    if config.gpus == "auto":
        return 1.0 if have >= 1 else 0.0
    if config.gpus > have and is_local():
        what = f"gpus is {config.gpus:g}, and this machine has {have:g}"
        raise RunError(what, key="gpus", fix="set gpus=auto")
    return config.gpus


def task_resources(group: Sequence[ModelEntry], config: BenchmarkConfig) -> dict[str, float]:
    """The resources of a task. More than a single machine has would let the task wait for ever."""
    import ray

    have = ray.cluster_resources()
    most = have if is_local() else {}
    cpus = float(config.cpus)
    asked = {"num_cpus": min(cpus, most.get("CPU", cpus))}
    if group[0].path.startswith(PREFIX):  # little work, which must not wait until the models have ended
        return {"num_cpus": 0.0 if is_local() else min(1.0, cpus)}
    memory = _memory(group[0], config)
    return asked | {"num_gpus": float(config.gpus), "memory": min(memory, most.get("memory", memory))}


def _memory(entry: ModelEntry, config: BenchmarkConfig) -> float:
    """Bytes for the task of a model: its weights twice while they load, and 1 GiB for images and Python."""
    if config.memory_gb is not None:
        return config.memory_gb * 2**30
    folder = Path(folder_of(entry.path))
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else 0
    models = 1 if entry.blend is None else 3  # the two, and their blend
    return float(2 * models * weights + 2**30)
