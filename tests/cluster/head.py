"""A real Ray head as users start it, with processes, ports and a folder of its own, and `addiffusion` beside.

Always true here: it wants a token; it is ended by its own process, and nothing else of this machine's Ray is.
"""

from __future__ import annotations

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

PROJECT = Path(__file__).resolve().parents[2]
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


@contextmanager
def running_head(cpus: int = 4) -> Iterator[Head]:
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
    with ExitStack() as stack, (folder / "head.txt").open("wb") as output:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        stack.callback(_end, process)
        head = Head(f"http://127.0.0.1:{ports[1]}", environment)
        end = time.monotonic() + _START_S
        while not (_STARTED in (folder / "head.txt").read_text() and _answers(head)):
            said = (folder / "head.txt").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.5)
        yield head
        assert process.poll() is None, (folder / "head.txt").read_text()


def _end(process: subprocess.Popen[bytes]) -> None:
    """With --block, SIGTERM ends all that it has started."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


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
