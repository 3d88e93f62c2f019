"""Rewrites the golden records: `python -m tests.golden.make`, from the repository's root.

Only for a deliberate change: what the records hold is what a refactor must repeat. The commit that carries
new records must say why they changed. `--records` rewrites `records/` only; `files/`, which an earlier
version wrote and later ones must read, then stays as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import records

from his2lip.runtime import start_ray


def main() -> None:
    records.RECORDS.mkdir(exist_ok=True)
    keep_files = "--records" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if not keep_files:
            shutil.rmtree(records.FILES, ignore_errors=True)
            records.write_files(scratch)
        write("machine", records.machine())
        write_local(scratch)
        write_grid(scratch, keep_files=keep_files)


def write_local(scratch: Path) -> None:
    """Everything but the grid."""
    records.write_twins(scratch / "twins")
    mihic = scratch / "twins/mihic"
    write("training", records.training(mihic))
    write("training_released", records.training(mihic, released=True))
    write("training_two_ranks", records.training_on_two_ranks(mihic, scratch))
    write("twins", records.twins(scratch / "twins"))
    write("readers", records.readers(scratch / "readers"))
    write("order", records.order())
    write("draws", records.draws())
    write("sweep_identity", records.sweep_identity())


def write_grid(scratch: Path, *, keep_files: bool) -> None:
    """The grid, and what is known by the committed checkpoint."""
    import ray

    start_ray(num_cpus=2, object_store_memory=400 << 20)  # as the tests' fixture does
    checkpoint = records.write_checkpoint(scratch / "checkpoint")
    config = records.grid_config(scratch, checkpoint)
    result = records.run_golden_grid(config)
    write("grid", records.grid(result, config))
    shutil.copy(result.leaderboard, records.RECORDS / "leaderboard.csv")
    if not keep_files:
        records.write_grid_files(scratch / "of mist", checkpoint)
        cache = scratch / "another cache"
        records.fit_calibration(checkpoint, cache).save(records.FILES / "calibration.json")
    ray.shutdown()
    write("identities", records.identities(checkpoint))
    compatible: dict[str, Any] = {
        "resume": records.resume_curve(checkpoint),
        "captions": records.captions_file(records.FILES / "captions.json"),
        "shards": {name: records.shards_file(name) for name in records.GRID_DATASETS},
        "embedded": records.embed_committed(records.FILES / "cache", checkpoint)[0],
        "temperature": records.temperature(checkpoint, records.FILES / "calibration.json"),
        "prepared": records.prepare_flat(scratch / "flat", scratch / "flat shards"),
    }
    write("compatible", compatible)


def write(name: str, tree: Any) -> None:
    path = records.RECORDS / f"{name}.json"
    path.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}", flush=True)


if __name__ == "__main__":
    main()
