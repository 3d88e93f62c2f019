"""A made-up AWS in this process, whose spot market can be empty, and Ray's own autoscaler on it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

CLUSTER = Path(__file__).resolve().parents[2] / "cluster.yaml"


def cluster() -> dict[str, Any]:
    return yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))


@contextmanager
def made_up_aws(home: Path) -> Iterator[Any]:
    """A fresh AWS with our security group; gives its EC2 client. HOME is where Ray writes its key."""
    import boto3
    from moto import mock_aws

    (home / ".ssh").mkdir(parents=True, exist_ok=True)
    (home / ".ray").mkdir(exist_ok=True)
    (home / ".ray/auth_token").write_text("0" * 64)
    made_up = {"HOME": str(home), "AWS_ACCESS_KEY_ID": "made-up", "AWS_SECRET_ACCESS_KEY": "made-up"}
    with mock.patch.dict(os.environ, made_up), mock_aws():
        yield boto3.client("ec2", region_name=cluster()["provider"]["region"])


@contextmanager
def no_spot_machines() -> Iterator[list[str]]:
    """While it is open, AWS refuses every spot machine; gives the refused instance types."""
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models import EC2Backend

    launch, refused = EC2Backend.run_instances, []

    def run_instances(self: Any, *args: Any, **options: Any) -> Any:
        if options.get("instance_market_options"):
            refused.append(options["instance_type"])
            raise EC2ClientError("InsufficientInstanceCapacity", "There is no Spot capacity available.")
        return launch(self, *args, **options)

    with mock.patch.object(EC2Backend, "run_instances", run_instances):
        yield refused


def bootstrapped(ec2: Any) -> dict[str, Any]:
    """cluster.yaml as the head gets it, with a security group and images that this AWS has."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    ours = ec2.create_security_group(GroupName="his2lip", Description="his2lip", VpcId=vpc)["GroupId"]
    config = copy.deepcopy(cluster())
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    for node in config["available_node_types"].values():
        node["node_config"] |= {"SecurityGroupIds": [ours], "ImageId": image}
    config["provider"] |= {"foreground_node_launch": True, "disable_node_updaters": True}
    made = bootstrap_aws(prepare_config(config))
    for node in made["available_node_types"].values():
        node["node_config"].pop("IamInstanceProfile")  # an account's own
    return made


@dataclass(frozen=True)
class Account:
    """The made-up AWS with a cluster's head in it. `file`: the cluster's file as the head has it."""

    ec2: Any
    config: dict[str, Any]
    file: Path

    def workers(self) -> list[str]:
        """The node types of the workers that exist, sorted."""
        tags = [
            {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            for reservation in self._instances()
            for instance in reservation["Instances"]
        ]
        return sorted(tag["ray-user-node-type"] for tag in tags if tag["ray-node-type"] == "worker")

    def only_a_head(self) -> None:
        """Ends all instances, starts a head with the tags of `ray up`, and writes the file again."""
        there = [i["InstanceId"] for reservation in self._instances() for i in reservation["Instances"]]
        if there:
            self.ec2.terminate_instances(InstanceIds=there)
        name, tags = self.config["cluster_name"], []
        for key, value in {"cluster-name": name, "node-type": "head", "user-node-type": "head",
                           "node-status": "up-to-date", "node-name": f"ray-{name}-head"}.items():  # fmt: skip
            tags.append({"Key": f"ray-{key}", "Value": value})
        head = self.config["available_node_types"]["head"]["node_config"]
        kept = {key: head[key] for key in ("InstanceType", "ImageId", "SecurityGroupIds")}
        self.ec2.run_instances(
            MinCount=1, MaxCount=1, TagSpecifications=[{"ResourceType": "instance", "Tags": tags}], **kept
        )
        self.file.write_text(yaml.safe_dump(self.config), encoding="utf-8")

    def _instances(self) -> list[dict[str, Any]]:
        alive = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        return self.ec2.describe_instances(Filters=alive)["Reservations"]


class Scaler:
    """Ray's autoscaler, as `ray start --autoscaling-config=FILE` runs it on the head."""

    def __init__(self, file: Path) -> None:
        from ray.autoscaler._private.autoscaler import StandardAutoscaler
        from ray.autoscaler._private.load_metrics import LoadMetrics

        self._load = LoadMetrics()
        self._scaler = StandardAutoscaler(
            str(file), self._load, gcs_client=mock.Mock(), update_interval_s=0, max_failures=0
        )

    def want(self, *bundles: dict[str, float]) -> None:
        """Jobs ask for these resources."""
        self._load.set_resource_requests(list(bundles))

    def update(self) -> None:
        self._scaler.update()
