"""kuberay.yaml: what KubeRay's own schema accepts, and what Ray's autoscaler does with it."""

from __future__ import annotations

import copy
import gzip
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
SCHEMA = Path(__file__).with_name(
    "raycluster-v1.7.0.schema.json.gz"
)  # its $comment names the source and licence


@pytest.fixture
def manifest() -> dict[str, Any]:
    return yaml.safe_load((REPO / "kuberay.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(strict(json.loads(gzip.decompress(SCHEMA.read_bytes()))))


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(part) for key, part in schema.items()}
    open_ = {"additionalProperties", "x-kubernetes-preserve-unknown-fields"} & schema.keys()
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_:
        made["additionalProperties"] = False
    return made


def test_kuberays_own_schema_accepts_it(
    manifest: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    assert manifest.pop("metadata").keys() == {"name"}  # the schema leaves it to Kubernetes
    assert [f"{'/'.join(map(str, e.path))}: {e.message}" for e in validator.iter_errors(manifest)] == []


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("workerGroupSpecs", 0, "maxReplica"), 4),
        (("workerGroupSpecs", 0, "template", "spec", "containers", 0, "resource"), {}),
        (("autoscalerOptions", "version"), "v3"),
        (("authOptions", "mode"), "password"),
        (("workerGroupSpecs", 0, "minReplicas"), "none"),
    ],
)
def test_a_mistake_in_it_is_found(
    manifest: dict[str, Any], validator: jsonschema.Draft202012Validator, path: tuple[Any, ...], wrong: Any
) -> None:
    del manifest["metadata"]
    place = manifest["spec"]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = wrong
    assert not validator.is_valid(manifest)


def test_its_ray_is_that_of_the_lock_file(manifest: dict[str, Any]) -> None:
    locked = re.search(r"^ray==([\d.]+)", (REPO / "requirements.lock").read_text(), flags=re.MULTILINE)
    assert locked is not None
    assert manifest["spec"]["rayVersion"] == locked[1]


def test_mlflow_and_the_dashboard_are_on_loopback_and_calls_need_the_token(manifest: dict[str, Any]) -> None:
    head = manifest["spec"]["headGroupSpec"]
    mlflow = next(c for c in head["template"]["spec"]["containers"] if c["name"] == "mlflow")
    assert mlflow["command"][2:4] == ["--host", "127.0.0.1"]
    assert head["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    assert manifest["spec"]["authOptions"]["mode"] == "token"
    assert "0.0.0.0" not in json.dumps(manifest)


def node_types(manifest: dict[str, Any]) -> dict[str, Any]:
    """The node types as Ray's autoscaler reads them on Kubernetes."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    config = copy.deepcopy(manifest)
    config["metadata"]["namespace"] = "default"  # Kubernetes adds it
    derived = _derive_autoscaling_config_from_ray_cr(config)
    return AutoscalingConfig(derived, skip_content_hash=True).get_node_type_configs()


def test_ray_reads_the_same_groups_as_in_cluster_yaml(manifest: dict[str, Any]) -> None:
    cluster = yaml.safe_load((REPO / "cluster.yaml").read_text(encoding="utf-8"))
    found = node_types(manifest)
    for name, node in cluster["available_node_types"].items():
        if name != cluster["head_node_type"]:
            assert found[name].resources["GPU"] == node["resources"]["GPU"]
            assert found[name].max_worker_nodes == node["max_workers"]
            assert found[name].min_worker_nodes == 0


@pytest.mark.parametrize(("gpus", "size"), [(1, "small"), (4, "large")])
@pytest.mark.parametrize("market", ["spot", "on-demand"])
def test_spot_comes_first_and_on_demand_where_spot_pods_stayed_pending(
    manifest: dict[str, Any], gpus: int, size: str, market: str
) -> None:
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    types = node_types(manifest)
    pending = {} if market == "spot" else {name: 0.0 for name in types if name.endswith("-spot")}
    request = ResourceRequestUtil.make({"GPU": 1, "CPU": 4})
    wanted = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=7,
        resource_requests=ResourceRequestUtil.group_by_count([request] * gpus),
        recoverable_resource_availabilities=pending,
    )
    started = ResourceDemandScheduler().schedule(wanted).to_launch
    names = [launch.instance_type for launch in started if launch.instance_type.startswith("gpu")]
    assert names == [f"gpu-{size}-{market}"]
