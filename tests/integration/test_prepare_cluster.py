"""`prepare` on a Ray cluster of two nodes: both write parts, and the dataset equals a local one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from his2lip.data.cards.card import load_card
from his2lip.data.prepare.dataset import prepare
from his2lip.data.shards.reader import open_shards
from his2lip.synthetic.layouts import write_layout

# The reader records the node on which it reads. It is pickled by value, because it is defined in __main__.
_SCRIPT = """
import os, sys, uuid
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from his2lip.data.prepare import dataset as module
from his2lip.data.cards import load_card
from his2lip.data.readers.mihic import MihicReader

class Noting(MihicReader):
    def patches(self, item, tiling):
        Path(notes, f"{ray.get_runtime_context().get_node_id()}.{uuid.uuid4().hex}").touch()
        yield from super().patches(item, tiling)

root, out, notes = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
os.environ["RAY_ADDRESS"] = cluster.address
module.get_reader = lambda card, root: Noting(Path(root), card)
try:
    module.prepare(load_card("mihic"), root, out, ray=True, part_bytes=60_000)
finally:
    ray.shutdown()
    cluster.shutdown()
"""


def test_two_nodes_of_a_cluster_together_write_the_dataset_that_one_machine_writes(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    places = iter(range(300))

    def draw(side: int, *_: object) -> np.ndarray:
        x = next(places)
        return real_ihc[x : x + side, x : x + side]

    write_layout("mihic", tmp_path / "in", draw, each=1)
    (tmp_path / "notes").mkdir()
    arguments = [str(tmp_path / name) for name in ("in", "out", "notes")]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    nodes = {path.name.partition(".")[0] for path in (tmp_path / "notes").iterdir()}
    assert len(nodes) == 2
    there = open_shards(tmp_path / "out").info
    assert len(there.parts) > 6
    here = prepare(load_card("mihic"), tmp_path / "in", tmp_path / "here", part_bytes=60_000).info
    assert (there.digest, there.parts) == (here.digest, here.parts)
