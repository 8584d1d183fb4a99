"""A real Ray head as users start it, with processes, ports and a folder of its own, and `addiffusion` beside.

Always true here: it wants a token; it is ended by its own process, and nothing else of this machine's Ray is.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
from ray.util import get_node_ip_address

PROJECT = Path(__file__).resolve().parents[2]
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_START_S = 300.0
_STARTED = "Ray runtime started"
_NOT_EPHEMERAL = range(20_000, 32_000)
_PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "ray-client-server-port",
)


@dataclass(frozen=True)
class Head:
    address: str
    """Of the job server."""
    gcs_address: str
    environment: Mapping[str, str]
    """What a process needs to speak with it."""
    python: str = sys.executable

    def start(self, *arguments: str, cwd: Path, without: str = "") -> subprocess.Popen[str]:
        """`addiffusion ARGUMENTS` as a process of its own, without one of the environment's variables."""
        environment = {name: value for name, value in self.environment.items() if name != without}
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", *arguments],
            cwd=cwd,
            env=environment | {"PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored behind a shell's "&"
        )

    def say(self, *arguments: str, cwd: Path, without: str = "") -> tuple[int, str, str]:
        """The same to its end: exit code, stdout and stderr."""
        with self.start(*arguments, cwd=cwd, without=without) as process:
            out, err = process.communicate()
            return process.returncode, out, err


@dataclass(frozen=True)
class Autoscaler:
    """Ray's own, of version 1 (the cluster launcher's) or 2 (KubeRay's), with the provider of Ray's tests.

    What it starts are real raylets on this machine. types: worker nodes, as the launcher's YAML has them.
    """

    types: Mapping[str, Mapping[str, Any]]
    version: int

    @property
    def environment(self) -> dict[str, str]:
        own = {"RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
        if self.version == 2:
            own["RAY_enable_autoscaler_v2"] = "1"
            own["RAY_CLOUD_INSTANCE_ID"] = FAKE_HEAD_NODE_ID
            own["RAY_NODE_TYPE_NAME"] = FAKE_HEAD_NODE_TYPE
        return own

    def config(self, gcs_address: str) -> dict[str, Any]:
        """For `ray start --autoscaling-config`."""
        types = {
            name: {"resources": {"object_store_memory": 2**27, **kind["resources"]}, "node_config": {}}
            | {bound: kind[bound] for bound in ("min_workers", "max_workers")}
            for name, kind in self.types.items()
        }
        own = {"launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID} if self.version == 2 else {}
        commands = [f"{part}_commands" for part in ("initialization", "setup", "head_setup", "worker_setup")]
        commands += ["head_start_ray_commands", "worker_start_ray_commands"]
        return {
            "cluster_name": "tried",
            "max_workers": sum(kind["max_workers"] for kind in types.values()),
            "idle_timeout_minutes": 10,
            "provider": {
                "type": "external",
                "module": _PROVIDER,
                "gcs_address": gcs_address,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                **own,
            },
            "head_node_type": FAKE_HEAD_NODE_TYPE,
            "available_node_types": types
            | {FAKE_HEAD_NODE_TYPE: {"resources": {}, "node_config": {}, "max_workers": 0}},
            "auth": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            **{name: [] for name in commands},
        }


@contextmanager
def running_head(cpus: int = 4, autoscaler: Autoscaler | None = None) -> Iterator[Head]:
    """`ray start --head --block`, until the context ends; a head that died before is said with its output."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets' paths have to be short
    ports = _free_ports(len(_PORTS))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "300",
        "RAY_worker_niceness": "0",
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += ["--dashboard-host=127.0.0.1", f"--temp-dir={folder}", f"--num-cpus={cpus}"]
    command += [
        "--object-store-memory=268435456",
        *(f"--{name}={port}" for name, port in zip(_PORTS, ports, strict=True)),
    ]
    if autoscaler is not None:
        environment |= autoscaler.environment
        config = autoscaler.config(f"{get_node_ip_address()}:{ports[0]}")
        (folder / "autoscaling.json").write_text(json.dumps(config))
        command.append(f"--autoscaling-config={folder / 'autoscaling.json'}")
    with ExitStack() as stack, (folder / "head.txt").open("wb") as output:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        stack.callback(_end, process)
        head = Head(f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}", environment)
        end = time.monotonic() + _START_S
        while not (_STARTED in (folder / "head.txt").read_text() and _answers(head)):
            said = (folder / "head.txt").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.5)
        yield head
        assert process.poll() is None, (folder / "head.txt").read_text()


def _end(process: subprocess.Popen[bytes]) -> None:
    """With --block, SIGTERM ends all that it has started, but for the nodes that an autoscaler has."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for left in started:
        with suppress(psutil.NoSuchProcess):
            left.kill()


def _answers(head: Head) -> bool:
    token = f"Bearer {head.environment['RAY_AUTH_TOKEN']}"
    request = urllib.request.Request(f"{head.address}/api/version", headers={"Authorization": token})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _free_ports(count: int) -> list[int]:
    """Free now, and none that the system hands out by itself: Ray takes them only seconds later."""
    with ExitStack() as stack:
        free: list[int] = []
        for port in random.SystemRandom().sample(_NOT_EPHEMERAL, 20 * count):
            with suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                free.append(port)
            if len(free) == count:
                return free
    raise AssertionError(f"no {count} free ports in {_NOT_EPHEMERAL}")
