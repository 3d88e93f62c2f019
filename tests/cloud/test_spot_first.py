"""Spot machines first, the same on demand where AWS has none: Ray's autoscaler on a made-up AWS."""

from __future__ import annotations

import pytest
import yaml
from made_up_aws import CLUSTER, Account, Scaler, no_spot_machines

ONE, FOUR = [{"GPU": 1, "CPU": 4}], [{"GPU": 1, "CPU": 4}] * 4


@pytest.fixture(autouse=True)
def as_on_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the command in cluster.yaml that starts Ray on the head."""
    start = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))["head_start_ray_commands"][-1]
    assert "RAY_AUTOSCALER_UTILIZATION_SCORER=spot_first.score PYTHONPATH=$HOME/.his2lip " in start
    assert "RAY_enable_autoscaler_v2=0" in start
    monkeypatch.setenv("RAY_AUTOSCALER_UTILIZATION_SCORER", "spot_first.score")
    monkeypatch.syspath_prepend(CLUSTER.parent / "his2lip/cloud")


@pytest.mark.parametrize(("wanted", "size"), [(ONE, "small"), (FOUR, "large")])
def test_a_job_gets_spot_machines_of_the_size_that_fits(
    account: Account, wanted: list[dict[str, float]], size: str
) -> None:
    scaler = Scaler(account.file)
    scaler.want(*wanted)
    scaler.update()
    assert account.workers() == [f"gpu-{size}-spot"]


@pytest.mark.parametrize(("wanted", "size"), [(ONE, "small"), (FOUR, "large")])
def test_where_aws_has_no_spot_machine_the_same_one_starts_on_demand(
    account: Account, wanted: list[dict[str, float]], size: str
) -> None:
    scaler = Scaler(account.file)
    scaler.want(*wanted)
    with no_spot_machines() as refused:
        for _ in range(3):
            scaler.update()
    assert account.workers() == [f"gpu-{size}-on-demand"]
    assert refused


def test_without_our_score_ray_would_ask_for_the_refused_spot_machine_for_ever(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTOSCALER_UTILIZATION_SCORER")
    scaler = Scaler(account.file)
    scaler.want(*ONE)
    with no_spot_machines():
        for _ in range(5):
            scaler.update()
    assert account.workers() == []
