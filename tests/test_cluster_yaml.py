"""cluster.yaml: what Ray's schema and EC2's own model accept, and what it must never open."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((REPO / "cluster.yaml").read_text(encoding="utf-8"))


def commands(cluster: dict[str, Any], part: str) -> str:
    return "\n".join(cluster[part])


def test_rays_own_schema_accepts_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(cluster)))
    misspelt = {**cluster, "max_wrokers": 1}
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config(misspelt))


def test_ec2_would_accept_every_node(cluster: dict[str, Any]) -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")
    assert model.input_shape is not None
    for node in cluster["available_node_types"].values():
        asked = {"MinCount": 1, "MaxCount": 1, **node["node_config"]}
        report = ParamValidator().validate(asked, model.input_shape)
        assert not report.has_errors(), report.generate_report()
    wrong = ParamValidator().validate({**asked, "InstanceTyp": "x"}, model.input_shape)
    assert wrong.has_errors()


def test_workers_start_from_zero_with_gpus_in_two_sizes_on_spot_and_on_demand(
    cluster: dict[str, Any],
) -> None:
    nodes = cluster["available_node_types"]
    head = nodes.pop(cluster["head_node_type"])
    assert "GPU" not in head["resources"]
    assert "InstanceMarketOptions" not in head["node_config"]
    for size, gpus in (("small", 1), ("large", 4)):
        spot, on_demand = nodes.pop(f"gpu-{size}-spot"), nodes.pop(f"gpu-{size}-on-demand")
        assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
        assert spot == on_demand  # the same machine, so that either can do the work of the other
        assert spot["min_workers"] == 0
        assert spot["resources"]["GPU"] == gpus
    assert not nodes


def test_versions_are_those_of_the_lock_file(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/requirements.lock"] == "requirements.lock"
    assert (REPO / "requirements.lock").is_file()
    from ray.autoscaler._private.util import prepare_config

    prepared = prepare_config(copy.deepcopy(cluster))  # with what Ray adds to a file that leaves a key out
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == cluster["setup_commands"]
    setup = commands(cluster, "setup_commands")
    assert "--require-hashes -r ~/requirements.lock" in setup
    # Nothing else is installed by name, so there is no second version that could differ.
    assert not re.search(r"pip install (?!--quiet --python ~/venv/bin/python --require-hashes)", setup)
    requires = re.search(
        r'requires-python = ">=([\d.]+)"', (REPO / "pyproject.toml").read_text(encoding="utf-8")
    )
    asked = re.search(r"uv venv --quiet --python ([\d.]+)", setup)
    assert requires is not None
    assert asked is not None
    assert asked[1] == requires[1]


def test_dashboards_and_mlflow_listen_on_loopback_alone(cluster: dict[str, Any]) -> None:
    head = commands(cluster, "head_start_ray_commands")
    assert "--dashboard-host=127.0.0.1" in head
    service = (REPO / "his2lip/cloud/his2lip-mlflow.service").read_text(encoding="utf-8")
    assert "mlflow server --host 127.0.0.1" in service
    assert not re.search(r"mlflow server (?!--host 127.0.0.1)", head)
    assert "0.0.0.0" not in (REPO / "cluster.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_wants_the_token_and_sends_no_statistics(cluster: dict[str, Any], part: str) -> None:
    start = next(command for command in cluster[part] if "ray start" in command)
    before = start.split("ray start")[0]
    assert "RAY_AUTH_MODE=token" in before
    assert "RAY_USAGE_STATS_ENABLED=0" in before
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"][0]
