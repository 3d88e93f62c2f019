"""A Ray cluster of several nodes on this machine, in a process of its own, with a job server and a token."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CLUSTER = """
import itertools, json, sys
from ray._private.utils import write_ray_address
from ray.cluster_utils import Cluster
asked = json.loads(sys.argv[1])
small = {"object_store_memory": 100 << 20, "temp_dir": asked["folder"]}
head = {"num_cpus": asked["head_cpus"], "include_dashboard": True, "dashboard_port": asked["port"],
        "dashboard_agent_listen_port": asked["agent"]}
cluster = Cluster(initialize_head=True, head_node_args=small | head)
write_ray_address(cluster.address, asked["folder"])  # where jobs look for their cluster
number = itertools.count()
def add():  # with folders of its own for the files of jobs: a node replaces what it finds there
    return cluster.add_node(num_cpus=1, runtime_env_dir_name=f"runtime_resources_{next(number)}", **small)
nodes = [add() for _ in range(asked["nodes"])]
print(json.dumps(cluster.address), flush=True)
for line in sys.stdin:
    if line == "lose\\n":
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
    else:
        nodes.append(add())
    print(json.dumps(len(nodes)), flush=True)
cluster.shutdown()
"""


@dataclass(frozen=True)
class Nodes:
    """
    dashboard  the address for `--address`
    address    of the head, for RAY_ADDRESS
    env        environment of a client that has the token
    """

    process: subprocess.Popen[str]
    dashboard: str
    address: str
    env: dict[str, str]

    def lose(self) -> None:
        """Ends the oldest node besides the head as kill -9 does: its raylet, its workers and its objects."""
        self._ask("lose")

    def add(self) -> None:
        """Starts another node of one CPU."""
        self._ask("add")

    def driver(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs `python COMMAND` as a driver on the cluster."""
        env = self.env | {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token"}
        return subprocess.run([sys.executable, *command], env=env, text=True, capture_output=True, **options)

    def _ask(self, what: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline()


@contextmanager
def ray_nodes(count: int, *, head_cpus: int = 1, **environment: str) -> Iterator[Nodes]:
    """A head and `count` nodes of one CPU each; `environment` is that of their processes, and so of jobs."""
    home = Path(tempfile.mkdtemp(prefix="rn", dir="/tmp"))  # a short path, because Ray makes sockets in it
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GLOO_", "NCCL_"))}
    own = Path(sys.executable).parent
    env |= {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{own}:{env['PATH']}"} | environment
    token = env | {"RAY_AUTH_MODE": "token"}
    subprocess.run([own / "ray", "get-auth-token", "--generate"], env=token, capture_output=True, check=False)
    (home / ".ray" / "auth_token").chmod(0o600)
    port = _free_port()
    asked = {
        "folder": f"{home}/r", "port": port, "agent": _free_port(), "nodes": count, "head_cpus": head_cpus,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", _CLUSTER, json.dumps(asked)], env=token, cwd=home, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(home / "said").open("w"),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (home / "said").read_text()[-4000:]
        yield Nodes(process, f"http://127.0.0.1:{port}", json.loads(line), env)
    finally:
        assert process.stdin is not None
        process.stdin.close()  # then it ends its nodes
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(home, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
