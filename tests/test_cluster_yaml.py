"""cluster.yaml: what Ray's schema and EC2's own model accept, and what it must never open."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
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


def test_workers_start_from_zero_on_spot_with_gpus_and_the_head_has_none(cluster: dict[str, Any]) -> None:
    nodes = cluster["available_node_types"]
    head = nodes.pop(cluster["head_node_type"])
    assert "GPU" not in head["resources"]
    assert "InstanceMarketOptions" not in head["node_config"]
    for worker in nodes.values():
        assert worker["min_workers"] == 0
        assert worker["resources"]["GPU"] >= 1
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


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
    assert "mlflow server --host 127.0.0.1" in head
    assert "0.0.0.0" not in (REPO / "cluster.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_wants_the_token_and_sends_no_statistics(cluster: dict[str, Any], part: str) -> None:
    start = next(command for command in cluster[part] if "ray start" in command)
    before = start.split("ray start")[0]
    assert "RAY_AUTH_MODE=token" in before
    assert "RAY_USAGE_STATS_ENABLED=0" in before
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"][0]


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A made-up AWS in this process, with a home of its own for the key that Ray writes."""
    from moto import mock_aws

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made-up")
    with mock_aws():
        yield


@pytest.mark.usefixtures("aws")
def test_ray_opens_nothing_to_the_internet_besides_what_our_own_group_allows(cluster: dict[str, Any]) -> None:
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    ec2 = boto3.client("ec2", region_name=cluster["provider"]["region"])
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    ours = ec2.create_security_group(GroupName="his2lip", Description="his2lip", VpcId=vpc)["GroupId"]
    for node in cluster["available_node_types"].values():
        node["node_config"]["SecurityGroupIds"] = [ours]
    made = bootstrap_aws(prepare_config(cluster))
    for node in made["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"] == [ours]
    groups = {g["GroupName"]: g for g in ec2.describe_security_groups()["SecurityGroups"]}
    assert set(groups) == {"default", "his2lip"}  # none of Ray's making
    assert groups["his2lip"]["IpPermissions"] == []


@pytest.mark.usefixtures("aws")
def test_without_a_group_of_our_own_ray_would_open_ssh_to_the_whole_internet(cluster: dict[str, Any]) -> None:
    """Why the group is named by its id: `provider.security_group` would not keep Ray from doing this."""
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    for node in cluster["available_node_types"].values():
        del node["node_config"]["SecurityGroupIds"]
    cluster["provider"]["security_group"] = {"GroupName": "his2lip"}
    bootstrap_aws(prepare_config(cluster))
    ec2 = boto3.client("ec2", region_name=cluster["provider"]["region"])
    found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["his2lip"]}])
    ranges = [r["CidrIp"] for p in found["SecurityGroups"][0]["IpPermissions"] for r in p["IpRanges"]]
    assert ranges == ["0.0.0.0/0"]
