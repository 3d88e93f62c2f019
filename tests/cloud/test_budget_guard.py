"""The budget guard: what it counts, and how it ends the workers through Ray's autoscaler and AWS."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up_aws import CLUSTER, Account, Scaler

from his2lip.cloud.budget_guard import NOTICE_S, Guard, Machine, Record, instances, read_budget

HOUR = 3600.0
PRICES = {"m7i.xlarge": 0.5, "g6.2xlarge": 1.0, "g6e.12xlarge": 10.0}


def small(name: str, *, hours: float, node: str = "gpu-small-spot") -> Machine:
    return Machine(name, "g6.2xlarge", node, launched=0.0, seen=hours * HOUR)


def test_every_machine_counts_from_its_start_to_when_it_was_last_seen() -> None:
    record = Record()
    record.see([small("i-1", hours=1), Machine("i-2", "m7i.xlarge", "head", 0.0, HOUR)])
    record.see([small("i-1", hours=3)])  # i-2 has ended
    assert record.hours() == {"g6.2xlarge": 3.0, "m7i.xlarge": 1.0}
    assert record.usd(PRICES) == 3.5


def test_a_machine_without_a_price_counts_as_the_most_expensive_one() -> None:
    record = Record()
    record.see([Machine("i-1", "p5.48xlarge", "gpu-huge", 0.0, 2 * HOUR)])
    assert record.usd(PRICES) == 20.0


def test_a_record_is_the_same_after_a_restart(tmp_path: Path) -> None:
    record = Record(told=7.0)
    record.see([small("i-1", hours=1)])
    record.write(tmp_path / "shared/budget.json")
    assert Record.read(tmp_path / "shared/budget.json") == record


@pytest.mark.parametrize("damage", ["{}", "[]", '{"machines": [{}], "told": null}', "no json"])
def test_a_damaged_record_is_not_taken_for_an_empty_one(tmp_path: Path, damage: str) -> None:
    (tmp_path / "budget.json").write_text(damage)
    with pytest.raises(ValueError, match=r"budget\.json|Expecting"):
        Record.read(tmp_path / "budget.json")


@pytest.mark.parametrize(
    "change",
    [
        *({"usd": 0}, {"usd": float("nan")}, {"usd": "300 USD"}, {"usd": [300]}, {"record": 1}),
        *({"usd_per_hour": {"m7i.xlarge": 1}}, {"usd_per_hour": ["m7i.xlarge"]}, {"record": None}),
    ],
)
def test_a_budget_that_is_incomplete_or_wrong_is_refused(change: dict[str, Any]) -> None:
    tree = yaml.safe_load(CLUSTER.read_text())
    read_budget(tree)
    budget = tree["metadata"]["budget"] | change
    tree["metadata"]["budget"] = {key: value for key, value in budget.items() if value is not None}
    with pytest.raises(ValueError, match="budget"):
        read_budget(tree)


def test_ray_up_ends_where_the_budget_cannot_be_read(tmp_path: Path) -> None:
    """The head runs this file alone, without his2lip."""
    guard = CLUSTER.parent / "his2lip/cloud/budget_guard.py"
    tree = yaml.safe_load(CLUSTER.read_text())
    tree["metadata"]["budget"]["record"] = str(tmp_path / "budget.json")
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(tree))
    del tree["metadata"]["budget"]["usd_per_hour"]["g6.2xlarge"]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(tree))
    done = {
        name: subprocess.run(
            [sys.executable, "-I", str(guard), "--check", "--config", str(tmp_path / f"{name}.yaml")],
            capture_output=True, text=True, check=False,
        )
        for name in ("good", "bad")
    }  # fmt: skip
    assert done["good"].returncode == 0
    assert "0.00 of 300.00 USD" in done["good"].stdout
    assert done["bad"].returncode == 2
    assert "g6.2xlarge" in done["bad"].stderr


class Head:
    """The head of a cluster with two workers at work, whose budget is two hours of one of them."""

    def __init__(self, account: Account, folder: Path) -> None:
        self.account, self.ec2, self.file = account, account.ec2, account.file
        tree = yaml.safe_load(self.file.read_text())
        tree["metadata"]["budget"] = {"usd": 2, "record": str(folder / "budget.json"), "usd_per_hour": PRICES}
        self.file.write_text(yaml.safe_dump(tree))
        self.budget, self.name = read_budget(tree), tree["cluster_name"]
        self.scaler = Scaler(self.file)
        self.scaler.want({"GPU": 1, "CPU": 4}, {"GPU": 1, "CPU": 4})
        self.scaler.update()
        self.scaler.update()  # moto starts one spot machine of a request for two
        assert len(self.workers()) == 2
        self.warned: list[float] = []

    def workers(self) -> list[str]:
        return self.account.workers()

    def guard(self, *, terminates: bool = True) -> Guard:
        def terminate(ids: list[str]) -> None:
            if terminates:
                self.ec2.terminate_instances(InstanceIds=ids)

        return Guard(
            self.file,
            self.budget,
            machines=lambda: instances(self.ec2, self.name),
            warn=self.warned.append,
            terminate=terminate,
        )

    def start(self) -> float:
        return min(machine.launched for machine in instances(self.ec2, self.name))

    def aged(self, hours: float) -> None:
        """Writes a record of a machine that ended after some hours."""
        Record({"i-0 0": small("i-0", hours=hours)}).write(self.budget.record)


@pytest.fixture
def head(account: Account, tmp_path: Path) -> Head:
    return Head(account, tmp_path)


def test_below_the_budget_nothing_is_touched(head: Head) -> None:
    before = head.file.read_text()
    assert 0 < head.guard().tick(head.start()) < 2
    head.scaler.update()
    assert head.file.read_text() == before
    assert len(head.workers()) == 2
    assert not head.warned
    assert len(json.loads(head.budget.record.read_text())["machines"]) == 3  # with the head


def test_over_the_budget_workers_are_warned_then_ended_and_no_other_one_starts(head: Head) -> None:
    head.aged(hours=2)
    guard, now = head.guard(), head.start()
    guard.tick(now)
    assert head.warned == [NOTICE_S]
    head.scaler.want(*[{"GPU": 1, "CPU": 4}] * 4)
    head.scaler.update()
    assert len(head.workers()) == 2  # the two that have a notice, and none of the two more that a job wants
    guard.tick(now + NOTICE_S - 1)
    assert len(head.workers()) == 2
    guard.tick(now + NOTICE_S)
    assert head.workers() == []
    head.scaler.update()
    head.scaler.update()
    assert head.workers() == []
    assert head.warned == [NOTICE_S]


def test_the_autoscaler_alone_ends_the_workers_where_the_guard_cannot(head: Head) -> None:
    head.aged(hours=2)
    guard, now = head.guard(terminates=False), head.start()
    guard.tick(now)
    guard.tick(now + NOTICE_S)
    assert len(head.workers()) == 2
    head.scaler.update()
    assert head.workers() == []


def test_a_spent_budget_stays_spent_after_a_restart_and_a_new_ray_up(head: Head) -> None:
    head.aged(hours=2)
    fresh, now = head.file.read_text(), head.start()
    head.guard().tick(now)
    head.file.write_text(fresh)  # `ray up` writes the limits again, and restarts the guard
    head.guard().tick(now + NOTICE_S)
    assert head.workers() == []
    tree = yaml.safe_load(head.file.read_text())
    assert tree["max_workers"] == 0
    assert {node["max_workers"] for node in tree["available_node_types"].values()} == {0}


def test_a_new_sum_begins_where_the_record_is_removed_while_no_guard_runs(head: Head) -> None:
    head.aged(hours=2)
    guard, now = head.guard(), head.start()
    assert guard.tick(now) > 2
    head.budget.record.unlink()  # such as a shared folder that is away for a moment
    assert guard.tick(now + 1) > 2
    assert len(json.loads(head.budget.record.read_text())["machines"]) == 4
    head.budget.record.unlink()
    assert head.guard().tick(now + 2) < 2
    machines = json.loads(head.budget.record.read_text())["machines"]
    there = instances(head.ec2, head.name)
    assert {m["id"]: m["launched"] for m in machines} == {m.id: m.launched for m in there}


def test_machines_that_cannot_be_listed_are_taken_to_be_there_still(head: Head) -> None:
    there, now = instances(head.ec2, head.name), head.start()

    def machines() -> list[Machine]:
        if there:
            return [there.pop(), there.pop()]
        raise ConnectionError("AWS is away")

    ended: list[str] = []
    guard = Guard(head.file, head.budget, machines=machines, warn=head.warned.append, terminate=ended.extend)
    guard.tick(now)
    assert guard.tick(now + HOUR / 2) == pytest.approx(1.0, abs=0.02)  # two machines for half an hour
    guard.tick(now + HOUR + 1)
    guard.tick(now + HOUR + 1 + NOTICE_S)
    assert head.warned == [NOTICE_S]
    assert len(ended) == 2
