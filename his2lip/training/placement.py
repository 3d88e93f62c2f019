"""What `auto` means for the threads of a run, on the machines that it runs on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from his2lip.training.config import TrainConfig

THREADS = "workers.threads"  # the key of run.json's `resolved` that decides the last bits of the weights


def number(value: int | Literal["auto"], auto: int) -> int:
    """`value`, or `auto` in its place where it is "auto"."""
    return auto if value == "auto" else value


def with_numbers(config: TrainConfig, *, threads: int, decode_threads: int) -> TrainConfig:
    """The same run with these numbers where `config` has "auto"."""
    workers = config.workers.model_copy(update={"threads": number(config.workers.threads, threads)})
    data = config.data.model_copy(
        update={"decode_threads": number(config.data.decode_threads, decode_threads)}
    )
    return config.model_copy(update={"workers": workers, "data": data})


def most_threads(nodes: Iterable[Mapping[str, float]], workers: int, *, use_gpu: bool) -> int:
    """The largest number of threads per worker for which the machines have enough CPUs.

    nodes    the Ray resources of each machine
    use_gpu  whether each worker also needs a GPU of its machine; it then has at most that GPU's share of the
             CPUs, so that other work can use the other GPUs
    1 where the workers do not fit even so.
    """
    sizes = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]

    def room(threads: int, cpus: int, gpus: int) -> int:
        if not use_gpu:
            return cpus // threads
        return min(cpus // threads, gpus) if gpus and threads <= max(1, cpus // gpus) else 0

    def fits(threads: int) -> bool:
        return sum(room(threads, *size) for size in sizes) >= workers

    most = max((cpus for cpus, _ in sizes), default=1)
    return next((threads for threads in range(most, 0, -1) if fits(threads)), 1)
