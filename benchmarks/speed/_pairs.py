"""Times two programs in turn in one run, measures their peak memory, and writes the result with the machine.

    args = arguments("wise_loss", "WISE loss: tiled against naive")
    pair = compare(Program("naive", naive), Program("linear", linear), repeats=args.repeats)
    write(args, {"n": 8192, **pair}, limits={"time_ratio": pair["time_ratio"] <= 1.2})

The programs run in turn (A, B, A, B, ...), so a busy machine slows both. The first turn is not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Program:
    """One side of a comparison: a name, and a call whose wall time is measured.

    If only a part of the call counts, the call returns the seconds of that part.
    """

    name: str
    run: Callable[[], float | None]


def whole(call: Callable[..., object], *arguments: Any) -> None:
    """A call of which the whole time counts, whatever it returns."""
    call(*arguments)


@dataclass(frozen=True)
class Sample:
    """One measured call: wall time in seconds, and peak memory in bytes above the memory before the call."""

    seconds: float
    peak_bytes: int


def arguments(name: str, description: str, *add: Callable[[argparse.ArgumentParser], object]) -> Any:
    """Parses the options of all scripts (--quick, --out, --repeats, --threads) and those that `add` adds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small sizes: shows that the script runs; its figures mean little",
    )
    parser.add_argument(
        "--out", type=Path, default=None, help=f"JSON file (default: benchmarks/results/{name}.json)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="measured turns of each program (at least five)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    for extend in add:
        extend(parser)
    args = parser.parse_args()
    args.name = name
    if args.out is None:
        args.out = RESULTS / (f"{name}.quick.json" if args.quick else f"{name}.json")
    return args


def gpu(args: Any) -> str:
    """The device: cuda, or cpu where there is no GPU and --quick was given; else the script ends here."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if not args.quick:
        raise SystemExit("no GPU was found; use --quick to run a small check on the CPU")
    return "cpu"


def compare(baseline: Program, candidate: Program, *, repeats: int = 5, warmup: int = 1) -> dict[str, Any]:
    """Runs both programs in turn; returns every sample, medians, and the ratios of candidate to baseline.

    The spread of the speed-up is that of the ratios of each turn: smallest and largest.
    """
    sides = in_turn([baseline, candidate], repeats=repeats, warmup=warmup)
    base, other = sides[baseline.name], sides[candidate.name]
    each = [a / b for a, b in zip(base["seconds"], other["seconds"], strict=True)]
    return {
        "baseline": baseline.name,
        "candidate": candidate.name,
        "repeats": repeats,
        "programs": sides,
        "time_ratio": other["median_s"] / base["median_s"],
        "speedup": base["median_s"] / other["median_s"],
        "speedup_spread": [min(each), max(each)],
        "memory_ratio": other["peak_bytes"] / base["peak_bytes"] if base["peak_bytes"] else None,
    }


def in_turn(programs: Sequence[Program], *, repeats: int = 5, warmup: int = 1) -> dict[str, dict[str, Any]]:
    """Runs the programs in turn; name -> every sample and the medians."""
    samples: dict[str, list[Sample]] = {program.name: [] for program in programs}
    for turn in range(warmup + repeats):
        for program in programs:
            sample = measure(program)
            if turn >= warmup:
                samples[program.name].append(sample)
            print(
                f"  {program.name}: {sample.seconds:.3f} s, {sample.peak_bytes / 2**20:.0f} MiB",
                file=sys.stderr,
            )
    return {name: _summary(taken) for name, taken in samples.items()}


def measure(program: Program) -> Sample:
    """Measures one call of `program`. Peak memory is the GPU's if CUDA is in use, else this process's."""
    gc.collect()
    held = _reset_peak()
    start = time.perf_counter()
    reported = program.run()
    _synchronize()
    seconds = time.perf_counter() - start
    return Sample(reported if reported is not None else seconds, max(0, _peak() - held))


def write(args: Any, result: dict[str, Any], *, limits: dict[str, bool] | None = None) -> Path:
    """Writes and prints the result as JSON, with the machine, the commit and whether each limit was met."""
    record = {
        "name": args.name,
        "quick": args.quick,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(args.threads),
        "limits_kept": limits or {},
        **result,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2, default=str))
    print(f"written to {args.out}", file=sys.stderr)
    return Path(args.out)


def machine(threads: int | None = None) -> dict[str, Any]:
    """The machine that a figure was measured on: processor, cores, memory, GPU, versions, commit, load."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "gpu": gpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def family(process: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    members, waiting = [], [process]
    while waiting:
        members.append(waiting.pop())
        waiting += children.get(members[-1], [])
    return members


def cpu_seconds() -> dict[int, tuple[str, float]]:
    """This process and its descendants: name, and seconds of processor time that each has used."""
    used: dict[int, tuple[str, float]] = {}
    for one in family(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            words = Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
            name = Path(os.fsdecode(words[0]).split("(")[0]).name if one != os.getpid() else "this process"
            ticks = int(fields[11]) + int(fields[12])  # user and system (proc(5), stat)
            used[one] = name, ticks / os.sysconf("SC_CLK_TCK")
    return used


def _summary(taken: list[Sample]) -> dict[str, Any]:
    return {
        "median_s": statistics.median(s.seconds for s in taken),
        "seconds": [s.seconds for s in taken],
        "peak_bytes": statistics.median(s.peak_bytes for s in taken),
        "peaks_bytes": [s.peak_bytes for s in taken],
    }


def _on_cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()


def _synchronize() -> None:
    if _on_cuda():
        sys.modules["torch"].cuda.synchronize()


def _reset_peak() -> int:
    """Resets the peak; returns the bytes in use now."""
    if _on_cuda():
        cuda = sys.modules["torch"].cuda
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        return int(cuda.memory_allocated())
    _trim_heap()
    # Writing 5 resets VmHWM to the current resident set (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_bytes("VmRSS")


def _trim_heap() -> None:
    """Returns freed pages to the system (glibc). Otherwise they would hide the peak of the next call."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _peak() -> int:
    if _on_cuda():
        return int(sys.modules["torch"].cuda.max_memory_allocated())
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.processor()
    )


def _commit() -> str | None:
    command = ["git", "-C", str(RESULTS), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
