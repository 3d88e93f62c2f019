"""Stops the workers of a cluster once its machines have cost a set sum. Runs on the head as a service."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path("~/ray_bootstrap_config.yaml")  # `ray up` puts it there; the autoscaler rereads it
EVERY_S = 30.0  # between two looks at the machines
NOTICE_S = 120.0  # from the notice to the workers until they are terminated, as AWS gives spot machines
_LEAST_S = 60.0  # AWS bills a machine for a minute at least
_ALIVE = ("pending", "running", "stopping", "shutting-down")
_log = logging.getLogger("budget_guard")


@dataclass(frozen=True)
class Budget:
    """`metadata.budget` of a cluster's file.

    usd           the most that all machines of the cluster may cost together, the head included
    record        the file that remembers every machine; removed while no guard runs, a new sum begins
    usd_per_hour  instance type -> its price on demand; spot machines are counted at this price too
    """

    usd: float
    record: Path
    usd_per_hour: Mapping[str, float]


def read_budget(config: Mapping[str, Any]) -> Budget:
    """The budget in a cluster's file. Raises ValueError where it is missing or wrong, or lacks a price."""
    try:
        tree = config["metadata"]["budget"]
        prices = {str(kind): float(price) for kind, price in tree["usd_per_hour"].items()}
        budget = Budget(float(tree["usd"]), Path(tree["record"]).expanduser(), prices)
        types = {node["node_config"]["InstanceType"] for node in config["available_node_types"].values()}
    except (KeyError, TypeError, AttributeError, ValueError):
        what = "metadata.budget needs usd, record and usd_per_hour, and each node type an InstanceType"
        raise ValueError(what) from None
    if lacking := types - prices.keys():
        raise ValueError(f"metadata.budget.usd_per_hour lacks {', '.join(sorted(lacking))}")
    if not all(0 < amount < math.inf for amount in (*prices.values(), budget.usd)):
        raise ValueError("metadata.budget: prices and usd must be numbers greater than 0")
    return budget


@dataclass(frozen=True)
class Machine:
    """An instance of EC2. `node`: its node type in the cluster's file; times in seconds since 1970."""

    id: str
    type: str
    node: str
    launched: float
    seen: float


@dataclass
class Record:
    """Every machine that the cluster has had, and when its workers were told to end (None: they were not)."""

    machines: dict[str, Machine] = field(default_factory=dict)
    told: float | None = None

    @classmethod
    def read(cls, path: Path) -> Record:
        """The record in a file; an empty one without it. Raises ValueError where the file is damaged."""
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        try:
            machines = [Machine(**machine) for machine in tree["machines"]]
            return cls({f"{m.id} {m.launched:.0f}": m for m in machines}, tree["told"])
        except (TypeError, KeyError, AttributeError):
            raise ValueError(f"{path} is no record of a budget") from None

    def write(self, path: Path) -> None:
        """Replaces the file atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tree = {"machines": [vars(machine) for machine in self.machines.values()], "told": self.told}
        _replace(path, json.dumps(tree, indent=1))

    def see(self, machines: Iterable[Machine]) -> None:
        """Adds machines that are there now. One that was stopped and started again counts twice."""
        self.machines |= {f"{m.id} {m.launched:.0f}": m for m in machines}

    def hours(self) -> dict[str, float]:
        """Instance type -> hours of all its machines together."""
        found: dict[str, float] = {}
        for machine in self.machines.values():
            found[machine.type] = (
                found.get(machine.type, 0.0) + max(machine.seen - machine.launched, _LEAST_S) / 3600
            )
        return found

    def usd(self, prices: Mapping[str, float]) -> float:
        """What all machines have cost. A type without a price counts as the most expensive one."""
        most = max(prices.values())
        return sum(prices.get(kind, most) * hours for kind, hours in self.hours().items())


class Guard:
    """One look at the machines per `tick`, and what follows from it.

    config     the cluster's file, whose limits on workers it lowers
    machines   -> the cluster's instances that exist now; where it raises an error, those of the last look are
               taken to be there still
    warn       tells every worker node of Ray in how many seconds it ends: its runs save a checkpoint
    terminate  ends instances
    """

    def __init__(
        self,
        config: Path,
        budget: Budget,
        *,
        machines: Callable[[], list[Machine]],
        warn: Callable[[float], object],
        terminate: Callable[[list[str]], object],
    ) -> None:
        self._config, self._budget = config, budget
        self._machines, self._warn, self._terminate = machines, warn, terminate
        self._record = Record.read(budget.record)
        self._there: list[Machine] = []

    def tick(self, now: float) -> float:
        """Counts what the machines have cost, ends the workers where that is too much; the sum in USD.

        With the budget spent, the workers get a notice first, and no further one starts. From NOTICE_S
        later on, the autoscaler's limits are 0, and workers that are left are terminated. The head stays.
        """
        record = self._record
        self._look(now)
        record.see(self._there)
        spent = record.usd(self._budget.usd_per_hour)
        head = yaml.safe_load(self._config.read_text(encoding="utf-8"))["head_node_type"]
        workers = [machine for machine in self._there if machine.node != head]
        if spent < self._budget.usd:
            record.told = None
        elif record.told is None:
            _log.warning("%.2f of %.2f USD are spent: %d workers end", spent, self._budget.usd, len(workers))
            record.told = now
            self._limit(workers)
            self._try("the workers got no notice", lambda: self._warn(NOTICE_S))
        elif now - record.told < NOTICE_S:
            self._limit(workers)
        else:
            self._limit([])
            ids = [machine.id for machine in workers]
            if ids:
                self._try("workers are not terminated yet", lambda: self._terminate(ids))
        self._try("the record is not written", lambda: record.write(self._budget.record))
        return spent

    def _look(self, now: float) -> None:
        before = self._there
        self._there = [replace(machine, seen=now) for machine in before]
        self._try("those of before are counted on", self._list)

    def _list(self) -> None:
        self._there = self._machines()

    def _try(self, otherwise: str, step: Callable[[], object]) -> None:
        """Runs a step whose failure must not end the guard: the next tick tries it again."""
        try:
            step()
        except Exception as error:  # of AWS, Ray, the network or the disk, of many types
            _log.warning("%s: %s: %s", otherwise, type(error).__name__, error)

    def _limit(self, workers: list[Machine]) -> None:
        """Makes the autoscaler start no worker beyond these: it rereads its file before each decision."""
        tree = yaml.safe_load(self._config.read_text(encoding="utf-8"))
        limited = {**tree, "max_workers": min(int(tree["max_workers"]), len(workers))}
        limited["available_node_types"] = {
            name: node if name == tree["head_node_type"] else _limited(node, name, workers)
            for name, node in tree["available_node_types"].items()
        }
        if limited != tree:
            _replace(self._config, yaml.safe_dump(limited, sort_keys=False))


def _limited(node: dict[str, Any], name: str, workers: list[Machine]) -> dict[str, Any]:
    there = sum(worker.node == name for worker in workers)
    return {**node, "min_workers": 0, "max_workers": min(int(node.get("max_workers", 0)), there)}


def instances(ec2: Any, cluster: str) -> list[Machine]:
    """The instances of a cluster that exist now, by the tags that Ray gives them."""
    filters = [
        {"Name": "tag:ray-cluster-name", "Values": [cluster]},
        {"Name": "instance-state-name", "Values": list(_ALIVE)},
    ]
    now, found = time.time(), []
    for page in ec2.get_paginator("describe_instances").paginate(Filters=filters):
        for instance in (i for reservation in page["Reservations"] for i in reservation["Instances"]):
            tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}
            launched = instance["LaunchTime"].timestamp()
            node = tags.get("ray-user-node-type", "")
            found.append(Machine(instance["InstanceId"], instance["InstanceType"], node, launched, now))
    return found


def warn_workers(address: str, seconds: float) -> None:
    """Ray's drain notice to every worker node: training saves a checkpoint, and no new task starts there."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated import autoscaler_pb2

    client = GcsClient(address=address)
    deadline = int((time.time() + seconds) * 1000)
    reason = autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION  # type: ignore[attr-defined]
    for node, info in client.get_all_node_info(timeout=30).items():
        if info.state == 0 and not info.is_head_node:  # GcsNodeInfo.ALIVE
            client.drain_node(node.hex(), reason, "the budget of the cluster is spent", deadline)


def _replace(path: Path, text: str) -> None:
    """Writes another file and renames it, with the old one's mode: a reader sees one of the two, whole."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    if path.exists():
        new.chmod(path.stat().st_mode & 0o777)
    os.replace(new, path)


def main(arguments: list[str] | None = None) -> int:
    """The service: a look every EVERY_S seconds. With --check only reads; 2 where the budget is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--address", default="127.0.0.1:6379", help="of Ray's GCS")
    parser.add_argument("--check", action="store_true", help="only read the budget and the record")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    path = asked.config.expanduser()
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        budget = read_budget(tree)
        spent = Record.read(budget.record).usd(budget.usd_per_hour)
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"budget guard: {error}", file=sys.stderr)
        return 2
    print(f"budget guard: {spent:.2f} of {budget.usd:.2f} USD are spent (record {budget.record})", flush=True)
    return 0 if asked.check else _serve(path, tree, budget, asked.address)


def _serve(path: Path, tree: Mapping[str, Any], budget: Budget, address: str) -> int:
    import boto3

    ec2 = boto3.client("ec2", region_name=tree["provider"]["region"])
    guard = Guard(
        path,
        budget,
        machines=lambda: instances(ec2, tree["cluster_name"]),
        warn=lambda seconds: warn_workers(address, seconds),
        terminate=lambda ids: ec2.terminate_instances(InstanceIds=ids),
    )
    while True:
        guard.tick(time.time())
        time.sleep(EVERY_S)


if __name__ == "__main__":
    sys.exit(main())
