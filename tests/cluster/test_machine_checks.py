"""The doctor on GPUs, memory, shared memory, Ray clusters and tracking servers that do not answer."""

from __future__ import annotations

import re
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from cluster import checks, gpu_checks, memory_checks, ray_checks
from cluster.check import Check, guarded
from cluster.gpu_checks import CARDS, Gpu
from learner.placement import RUNNER, demands
from tests.cluster.conftest import Say
from tune_configs.loading import compose

A100 = "NVIDIA A100-SXM4-40GB, 40960, 550.54.15"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name that prints what a test writes beside it."""
    program, said = tmp_path / "bin" / "nvidia-smi", tmp_path / "said"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {said}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return said


def gpus(*overrides: str) -> Check:
    run = compose(overrides).run
    return gpu_checks.gpus(run, demands(run.resources, run.rewards))


def test_gpus_are_held_against_what_the_run_reserves(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    nvidia_smi.write_text(f"{A100}\n")
    assert gpu_checks.local_gpus() == [Gpu("NVIDIA A100-SXM4-40GB", 40960, "550.54.15")]
    one = gpus("backbone=sd15", "resources=one_gpu")
    assert one.passed
    assert "1 x NVIDIA A100-SXM4-40GB, 40.0 GiB, driver 550.54.15" in one.found
    two = gpus("backbone=sd15", "resources=one_gpu", "resources.num_env_runners=2")
    assert not two.passed
    assert "resources.num_env_runners=2" in two.hint
    nvidia_smi.write_text(f"{A100}\n{A100}\n{A100}\n")
    assert gpus("backbone=sd15", "resources=one_gpu", "resources.num_env_runners=2").passed


def test_a_gpu_that_ray_would_hide_or_torch_cannot_see_is_told(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi.write_text(f"{A100}\n")
    assert "resources=one_gpu" in gpus("backbone=sd15").hint
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    blind = gpus("backbone=sd15", "resources=one_gpu")
    assert not blind.passed
    assert "driver" in blind.hint
    assert gpus().passed, "the embedded world needs none"


def audit(card: str | None, *overrides: str) -> list[Check]:
    run = compose(overrides).run
    pools = [demand for demand in demands(run.resources, run.rewards) if demand.what != RUNNER]
    return [check for check, _ in memory_checks.audits(run, pools, card)]


def test_the_resource_files_fit_on_the_cards_they_are_named_after() -> None:
    (small,) = audit("a100-40", "backbone=sd15", "resources=a100_40")
    (large,) = audit("a100-80", "backbone=sdxl", "resources=a100_80")
    assert small.passed, small.found
    assert large.passed, large.found
    assert "1 x env runner" in large.found
    assert "1 x reward replica" in large.found


def test_what_does_not_fit_names_changes_that_make_it_fit() -> None:
    asked = ("backbone=sd15", "resources=a100_40")
    (check,) = audit("t4", *asked, "resources.slots=256")
    assert not check.passed
    named = re.search(r"resources\.slots=(\d+)", check.hint)
    assert named is not None, check.hint
    (mended,) = audit("t4", *asked, named[0])
    assert mended.passed, mended.found
    assert "a card like" in check.hint


def test_apart_each_has_a_card_of_its_own() -> None:
    rows = audit("a100-40", "backbone=sd15", "resources=cluster")
    assert [row.passed for row in rows] == [True, True]
    assert "reward replica" not in rows[0].found


def test_a_card_that_nobody_knows_is_one_line(say: Say) -> None:
    code, _, error = say("doctor", "--gpu", "a100")
    assert code == 2
    assert "--gpu a100: give one of" in error
    assert "a100-40" in error
    assert all(mib > 10_000 for mib in CARDS.values())


@pytest.mark.parametrize(("free", "passed"), [(2**30, True), (64 * 2**20, False)])
def test_little_shared_memory_is_told(monkeypatch: pytest.MonkeyPatch, free: int, passed: bool) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    check = ray_checks.object_store(512 * 2**20)
    assert check.passed is passed
    assert "shm-size" in check.hint


def test_a_cluster_that_answers_is_asked_for_room(ray_session: None) -> None:
    address = ray.get_runtime_context().gcs_address
    fits = compose([f"resources.address={address}"]).run
    answered, room = ray_checks.cluster(fits.resources, demands(fits.resources, fits.rewards))
    assert (answered.passed, room.passed) == (True, True), (answered, room)
    assert "1 nodes, 0 GPUs and 4 CPUs" in answered.found
    wants = compose(["resources=cluster", f"resources.address={address}"]).run
    _, room = ray_checks.cluster(wants.resources, demands(wants.resources, wants.rewards))
    assert not room.passed
    assert "none of the cluster's 1 nodes offers it" in room.hint


def test_what_an_autoscaler_can_bring_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = compose(["resources=cluster"]).run
    head = {"Alive": True, "Resources": {"CPU": 8.0}}

    def rows(*nodes: object, autoscaled: bool) -> list[Check]:
        state = {"nodes": [*nodes], "autoscaled": autoscaled}
        monkeypatch.setattr(ray_checks, "state_at", lambda address, timeout_s: state)
        return list(ray_checks.cluster(run.resources, demands(run.resources, run.rewards)))

    answered, room = rows(head, autoscaled=True)
    assert (answered.passed, room.passed) == (True, True)
    assert "and an autoscaler" in answered.found
    assert "4 x env runner" in room.found
    assert "the autoscaler will be asked, and waited for 600 s" in room.found
    _, room = rows(head, autoscaled=False)
    assert not room.passed
    both = {"GPU": 2.0, "CPU": 8.0, "addiffusion_denoiser": 1.0, "addiffusion_rewards": 1.0}
    run = compose(
        ["resources=cluster", "resources.gpus_per_env_runner=0.5", "resources.gpus_per_reward_replica=0.5"]
    ).run
    _, room = rows({"Alive": True, "Resources": both}, autoscaled=True)
    assert not room.passed, "no node that comes changes that two may meet on this one's GPU"


def test_an_address_where_nobody_answers_is_a_failed_row() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        resources = compose([f"resources.address=127.0.0.1:{taken.getsockname()[1]}"]).run.resources
        (check,) = ray_checks.cluster(resources, [], timeout_s=5.0)
    assert not check.passed
    assert "ray start --head" in check.hint


class Tracking(BaseHTTPRequestHandler):
    """As much of MLflow's server as the doctor asks for; under /silent it never answers."""

    released = threading.Event()

    def do_POST(self) -> None:
        if self.path.startswith("/silent"):
            self.released.wait(60)
            return
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"experiments": []}')

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def tracking_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Tracking)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    Tracking.released.set()
    server.shutdown()


def test_a_tracking_server_is_asked_and_one_that_is_silent_costs_seconds(
    tracking_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MLFLOW_TIMEOUT_S", 1)
    for path, passed in (("", True), ("/silent", False)):
        run = compose([f"registry.tracking_uri={tracking_server}{path}"]).run
        check = guarded("MLflow registry", lambda run=run: checks.mlflow_store(run))  # type: ignore[misc]
        assert check.passed is passed, check
        assert passed or "timed out" in check.hint.lower()
