"""`ray up cluster.yaml` on moto's AWS: what it makes there, and its commands, run for real in a clean home.

Nothing leaves this machine: stand-ins for ssh and rsync are first on PATH. The stand-in ssh runs the command
of Ray in the home of the node that it names. Not run for real are `ray stop` (it would stop every Ray of this
machine), mounting, apt-get and systemd; what they are asked is recorded. `ray start` gets free ports.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback import on_loopback
from made_up_aws import CLUSTER, cluster

pytestmark = pytest.mark.slow
REPO = CLUSTER.parent
GROUP, PROFILES = "his2lip", ("his2lip-head", "his2lip-worker")

_SSH = """#!{python}
import json, os, shlex, subprocess, sys, re
words, forward, target = sys.argv[1:], None, None
while words:
    word = words.pop(0)
    if word == "-L":
        forward = words.pop(0)
    elif word in ("-i", "-o"):
        words.pop(0)
    elif not word.startswith("-"):
        target = word
        break
home = os.path.join({root!r}, "nodes", target.partition("@")[2], "home")
if not os.path.isdir(home):
    os.makedirs(home)
    open(os.path.join(home, ".bashrc"), "w").close()
    with open(os.path.join(home, ".bash_profile"), "w") as profile:  # a login shell has set PATH again
        profile.write("export PATH=" + {bin!r} + ":$PATH\\n")
with open({log!r}, "a") as log:
    log.write(json.dumps(dict(tool="ssh", target=target, forward=forward, command=" ".join(words))) + "\\n")
if forward:
    sys.exit(subprocess.call([{python!r}, {relay!r}, *forward.split(":")]))
env = dict(HOME=home, USER="ubuntu", PATH={bin!r} + ":/usr/local/bin:/usr/bin:/bin", TERM="dumb", **{env!r})
sys.exit(subprocess.call(["bash", "-c", " ".join(words)], env=env, cwd=home))
"""

_RSYNC = """#!{python}
import json, os, shutil, sys
source, (target, _, place) = sys.argv[-2], sys.argv[-1].partition(":")
home = os.path.join({root!r}, "nodes", target.partition("@")[2], "home")
with open({log!r}, "a") as log:
    log.write(json.dumps(dict(tool="rsync", target=target, source=source, place=place)) + "\\n")
place = place.replace("~", home, 1) if place.startswith("~") else os.path.join({root!r}, place.lstrip("/"))
os.makedirs(os.path.dirname(place.rstrip("/")), exist_ok=True)
if source.endswith("/"):
    shutil.copytree(source, place, dirs_exist_ok=True)
else:
    shutil.copy(source, place)
"""

# `sudo WHAT`: what can run without a real node does, in the node's own folder; the rest is only recorded.
_SUDO = """#!{python}
import json, os, shutil, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(dict(tool="sudo", command=" ".join(sys.argv[1:]))) + "\\n")
words = sys.argv[1:]
if words[0] == "cp":
    system = os.path.join(os.path.dirname(os.environ["HOME"]), words[-1].lstrip("/"))
    os.makedirs(system, exist_ok=True)
    for file in words[1:-1]:
        shutil.copy(file, system)
elif words[0] not in ("mkdir", "mount", "chown", "apt-get", "systemctl"):
    sys.exit("the stand-in sudo does not know " + words[0])
"""

_RELAY = """
import socket, sys, threading
port, _, remote = sys.argv[1:]
server = socket.create_server(("127.0.0.1", int(port)))
def copy(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)
while True:
    here, _ = server.accept()
    there = socket.create_connection(("127.0.0.1", int(open({mlflow!r}).read())))
    for ends in ((here, there), (there, here)):
        threading.Thread(target=copy, args=ends, daemon=True).start()
"""

# In front of every command on a node: `ray stop` is not run, `ray start` gets ports and a folder of its own.
_RAY = """
ray() {{
  echo '{{"tool": "ray", "command": "'"$*"'", "autoscaler_v2": "'"$RAY_enable_autoscaler_v2"'"}}' >> {log}
  case "$1" in
    stop) ;;
    start)
      case "$*" in
        *--head*) command ray "${{@/--port=6379/--port={port}}}" --object-manager-port=0 --num-cpus=1 \\
          --dashboard-port={dashboard} --temp-dir={temp} ;;
      esac ;;
    *) command ray "$@" ;;
  esac
}}
export -f ray
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Laptop:
    """A home with a token and a cluster.yaml, and a PATH whose ssh and rsync are stand-ins."""

    root: Path
    file: Path
    env: dict[str, str]
    ec2: Any
    dashboard: int

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`ray COMMAND`."""
        return subprocess.run(
            [Path(sys.executable).parent / "ray", *command], cwd=REPO, env=self.env, capture_output=True,
            text=True, check=False, timeout=280, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def log(self, tool: str) -> list[dict[str, Any]]:
        lines = (self.root / "log").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["tool"] == tool]

    @property
    def head(self) -> Path:
        """The home of the head, which alone has the cluster's file."""
        return next((self.root / "nodes").glob("*/home/ray_bootstrap_config.yaml")).parent

    def instances(self) -> list[dict[str, Any]]:
        found = self.ec2.describe_instances()["Reservations"]
        return [instance for reservation in found for instance in reservation["Instances"]]


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    import boto3

    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    if not Path(uv).exists():
        pytest.skip("uv is not installed")
    cache = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    root = tmp_path_factory.mktemp("up")
    home, tools, log = root / "laptop", root / "bin", root / "log"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("0" * 64)
    tools.mkdir()
    log.touch()
    python = Path(sys.base_prefix, "bin/python3.11")
    port, dashboard, temp = free_port(), free_port(), Path("/tmp") / f"h2l-{os.getpid()}"
    moto = {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "AWS_DEFAULT_REGION": "us-west-2"}
    server = [sys.executable, "-m", "moto.server"]
    with on_loopback(
        server, env={**os.environ, **moto}, host=("-H", "127.0.0.1"), health="/moto-api/", port="-p"
    ) as url:
        keys = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        node = {
            **keys, "UV_CACHE_DIR": cache, "UV_OFFLINE": "1", "UV_PYTHON_DOWNLOADS": "never",
            "BASH_ENV": str(root / "ray.sh"), "UV_LINK_MODE": "hardlink",
        }  # fmt: skip
        values = {"python": str(python), "root": str(root), "log": str(log), "bin": str(tools), "env": node,
                  "relay": str(root / "relay.py")}  # fmt: skip
        for name, text in (("ssh", _SSH), ("rsync", _RSYNC), ("sudo", _SUDO)):
            (tools / name).write_text(text.format(**values))
        (tools / "curl").write_text(f"#!/bin/sh\necho 'mkdir -p ~/.local/bin; ln -s {uv} ~/.local/bin/uv'\n")
        (tools / "mount.nfs4").write_text("#!/bin/sh\nexit 1\n")
        (tools / "mountpoint").write_text("#!/bin/sh\nexit 1\n")
        for tool in tools.iterdir():
            tool.chmod(0o755)
        (tools / "python3.11").symlink_to(python)
        (root / "relay.py").write_text(_RELAY.format(mlflow=str(root / "mlflow_port")))
        values = {"log": log, "port": port, "dashboard": dashboard, "temp": temp}
        (root / "ray.sh").write_text(_RAY.format(**values))
        ec2 = boto3.client("ec2", region_name="us-west-2", endpoint_url=url,
                           aws_access_key_id="x", aws_secret_access_key="x")  # fmt: skip
        iam = boto3.client("iam", region_name="us-west-2", endpoint_url=url,
                           aws_access_key_id="x", aws_secret_access_key="x")  # fmt: skip
        tree = cluster()
        _prepare_account(ec2, iam, tree)
        file = home / "cluster.yaml"
        file.write_text(yaml.safe_dump(tree, sort_keys=False))
        env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_"))}
        env |= {**keys, "HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}", "TMPDIR": str(root),
                "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(REPO)}  # fmt: skip
        try:
            yield Laptop(root, file, env, ec2, dashboard)
        finally:
            _end(str(temp))
            _end(str(root))
            shutil.rmtree(temp, ignore_errors=True)


def _prepare_account(ec2: Any, iam: Any, tree: dict[str, Any]) -> None:
    """What docs/cluster.md has the user make by hand, and the images, which moto's SSM does not name."""
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName=GROUP, Description=GROUP, VpcId=vpc)["GroupId"]
    trust = {"Version": "2012-10-17", "Statement": []}
    for profile in PROFILES:
        iam.create_role(RoleName=profile, AssumeRolePolicyDocument=json.dumps(trust))
        iam.create_instance_profile(InstanceProfileName=profile)
        iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=profile)
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    for node in tree["available_node_types"].values():
        node["node_config"] |= {"SecurityGroupIds": [group], "ImageId": image}


def _end(folder: str) -> None:
    """Ends the processes of this test: those that name its folder, and no other ones."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with suppress(OSError):
                if folder.encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)


@pytest.fixture(scope="module")
def up(laptop: Laptop) -> Laptop:
    done = laptop.run("up", "-y", "--no-config-cache", str(laptop.file))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return laptop


def test_aws_has_one_head_with_our_group_profile_and_key_and_nothing_is_open(up: Laptop) -> None:
    (head,) = up.instances()
    assert head["InstanceType"] == "m7i.xlarge"
    assert "SpotInstanceRequestId" not in head
    assert head["IamInstanceProfile"]["Arn"].endswith("instance-profile/his2lip-head")
    assert [group["GroupName"] for group in head["SecurityGroups"]] == [GROUP]
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert head["KeyName"].startswith("ray-autoscaler")
    groups = {group["GroupName"]: group for group in up.ec2.describe_security_groups()["SecurityGroups"]}
    assert set(groups) == {"default", GROUP}
    assert groups[GROUP]["IpPermissions"] == []


def test_the_nodes_home_has_the_locked_packages_and_no_test_packages(up: Laptop) -> None:
    python = up.head / "venv/bin/python"
    listed = subprocess.run(
        [python, "-c", "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in "
         "m.distributions()}))"], capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = {_canonical(name): version for name, version in json.loads(listed.stdout).items()}
    locked: dict[str, set[str]] = {}  # several versions where they depend on the platform or on Python
    lines = (REPO / "requirements.lock").read_text()
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", lines, re.MULTILINE):
        locked.setdefault(_canonical(name), set()).add(version)
    assert {name for name, version in found.items() if version not in locked.get(name, ())} == set()
    assert {"ray", "torch", "mlflow", "optuna"} <= found.keys()
    assert not {"pytest", "moto", "hypothesis", "mypy"} & found.keys()
    done = subprocess.run([python, "-m", "his2lip", "--help"], cwd=REPO, capture_output=True, check=False)
    assert done.returncode == 0


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_head_gets_token_services_settings_and_only_loopback(up: Laptop) -> None:
    home = up.head
    assert (home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    assert (
        "MLFLOW_BACKEND_STORE_URI=sqlite:////mnt/his2lip/mlflow/mlflow.db"
        in (home / "mlflow.env").read_text()
    )
    assert {file.name for file in (home.parent / "etc/systemd/system").iterdir()} == {
        "his2lip-mlflow.service",
        "his2lip-budget.service",
    }
    asked = [line["command"] for line in up.log("sudo")]
    assert "systemctl restart his2lip-mlflow his2lip-budget" in asked
    assert any(command.startswith("mount -t nfs4") for command in asked)
    budget = yaml.safe_load((home / "ray_bootstrap_config.yaml").read_text())["metadata"]["budget"]
    assert budget == cluster()["metadata"]["budget"]  # what the guard reads
    start = [line for line in up.log("ray") if line["command"].startswith("start --head")]
    assert "--dashboard-host=127.0.0.1" in start[0]["command"]
    assert start[0]["autoscaler_v2"] == "0"


def _eventually(true: Callable[[], bool], seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(0.5)
    return False


def test_a_request_for_a_gpu_starts_a_spot_node_whose_commands_reach_it(up: Laptop) -> None:
    ask = (
        "import ray; from ray.autoscaler import sdk; ray.init(); sdk.request_resources(bundles=[{'GPU': 1}])"
    )
    address = next(line["command"] for line in up.log("ray") if line["command"].startswith("start --head"))
    assert address
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_ADDRESS": _gcs(up)}
    subprocess.run([up.head / "venv/bin/python", "-c", ask], env=env, cwd=up.head, check=True, timeout=60)
    assert _eventually(lambda: len(up.instances()) == 2)
    (worker,) = (i for i in up.instances() if i["InstanceType"] != "m7i.xlarge")
    assert worker["InstanceType"] == "g6.2xlarge"
    assert worker["InstanceLifecycle"] == "spot"
    assert worker["IamInstanceProfile"]["Arn"].endswith("instance-profile/his2lip-worker")
    assert [group["GroupName"] for group in worker["SecurityGroups"]] == [GROUP]


def _gcs(up: Laptop) -> str:
    text = (up.root / "ray.sh").read_text()
    found = re.search(r"--port=6379/--port=(\d+)", text)
    assert found is not None
    return f"127.0.0.1:{found[1]}"


def test_one_command_shows_the_address_of_the_clusters_mlflow(up: Laptop, mlflow_store: str) -> None:
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        mlflow_store,
        "--workers",
        "1",
    ]
    with on_loopback(command, cwd=up.root) as server:
        (up.root / "mlflow_port").write_text(server.rpartition(":")[2])
        port = free_port()
        ui = subprocess.Popen(
            [sys.executable, "-m", "his2lip", "ui", "--no-browser", f"--cluster={up.file}", f"--port={port}"],
            cwd=REPO, env=up.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored in a background job
        )  # fmt: skip
        try:
            lines = []
            assert ui.stdout is not None
            for line in ui.stdout:
                lines.append(line)
                if f"http://127.0.0.1:{port};" in line:
                    break
            else:
                pytest.fail("".join(lines))
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=20) as answer:
                assert answer.status == 200
        finally:
            ui.send_signal(signal.SIGINT)
            assert ui.wait(timeout=30) == 0
    tunnels = [line for line in up.log("ssh") if line["forward"]]
    assert tunnels[-1]["forward"] == f"{port}:localhost:5000"
    assert not _listening(port)


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
