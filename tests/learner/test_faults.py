"""What a run survives, with real processes, signals and refusals of the kernel."""

from __future__ import annotations

import functools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from actors import trajectory_store
from actors.policy import load_policy
from learner import checkpoints, session
from learner.config import CheckpointConfig, RunConfig
from learner.events import read_events
from learner.guards import TrainingFailure
from learner.json_lines import read_rows
from learner.resources import ResourcesConfig
from learner.train import TrainResult, train
from tests.learner.test_curves import scalars
from tests.learner.test_train import same, weights, without_times
from tests.learner.toy import ToyBackbone, make_client, toy_config, toy_world
from tests.learner.toy_run import fault_config

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(900)]

ITERATIONS = 6
PATIENCE_S = 400.0
"""For a process to start and train, on a machine that has much else to do."""


@contextmanager
def a_process(folder: Path, name: str, iterations: int, *where: str) -> Iterator[subprocess.Popen[bytes]]:
    """A training run in this session's Ray; what it says is in `folder`/output.txt."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "tests.learner.toy_run", address, str(folder), name, str(iterations)]
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [*command, *where], cwd=Path(__file__).parents[2], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="module")
def uninterrupted(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(fault_config(tmp_path_factory.mktemp("whole"), "whole", ITERATIONS), world=toy_world)


def nothing_half_written(run_dir: Path) -> bool:
    return not [path for path in run_dir.rglob(".*")]


def assert_the_same_run(resumed: TrainResult, whole: TrainResult) -> None:
    """Rows, weights, held-out evaluations, registered policy and curves: there is no seam anywhere."""
    assert resumed.ended == "finished"
    rows = [read_rows(run.run_dir / "progress.jsonl") for run in (resumed, whole)]
    assert without_times(rows[0]) == without_times(rows[1])
    assert len({row["c_nfe"] for row in rows[0]}) > 2, "the price moves, and moves on"
    assert same(weights(resumed.policy_dir), weights(whole.policy_dir))
    evaluations = [
        [(row["iteration"], row["quality"], row["cost"]) for row in read_rows(run.run_dir / "held_out.jsonl")]
        for run in (resumed, whole)
    ]
    assert evaluations[0] == evaluations[1]
    last = [dict.fromkeys(scalars(run.run_dir / "tensorboard")) for run in (resumed, whole)]
    learnt = [
        [point for point in points if point[1] in ("return", "nfe", "c_nfe", "held_out/utility")]
        for points in last
    ]
    assert learnt[0] == learnt[1]
    assert nothing_half_written(resumed.run_dir)


@pytest.mark.parametrize("where", ["checkpoint", pytest.param("iteration", marks=pytest.mark.slow)])
def test_a_run_whose_driver_is_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, uninterrupted: TrainResult, where: str
) -> None:
    with a_process(tmp_path, "killed", ITERATIONS, where) as process:
        assert process.wait(PATIENCE_S) == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
    run_dir = tmp_path / "killed"
    assert not nothing_half_written(run_dir), "it was killed while it wrote"
    newest = checkpoints.read_state(checkpoints.newest(run_dir)).iteration
    assert newest == (2 if where == "checkpoint" else 4)
    config = fault_config(tmp_path, "killed", ITERATIONS)
    resumed = train(config, resume=run_dir, world=toy_world)
    assert_the_same_run(resumed, uninterrupted)
    assert [event.kind for event in read_events(run_dir)] == ["resumed"]
    table = trajectory_store.read(run_dir / "trajectories")
    assert sum(table["terminateds"].to_pylist()) == 16 * ITERATIONS


def test_sigterm_leaves_a_checkpoint_of_the_iteration_under_way(tmp_path: Path) -> None:
    progress = tmp_path / "ended" / "progress.jsonl"
    with a_process(tmp_path, "ended", 100_000) as process:
        deadline = time.monotonic() + PATIENCE_S
        while len(read_rows(progress)) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE_S)
    output = (tmp_path / "output.txt").read_text()
    assert code == 0, output
    assert output.splitlines()[-1] == "interrupted"
    rows = read_rows(progress)
    assert checkpoints.read_state(checkpoints.newest(progress.parent)).iteration == rows[-1]["iteration"]


def test_a_run_that_ended_before_its_first_update_goes_on(tmp_path: Path) -> None:
    """What it had done, the references and the calibration, is in the checkpoint of iteration 0."""
    config = fault_config(tmp_path, "early", 2)

    def end(row: dict[str, Any]) -> None:
        if row["phase"] == "references" and row["done"] == row["total"]:
            os.kill(os.getpid(), signal.SIGTERM)

    early = train(config, progress=end, world=toy_world)
    assert (early.ended, early.iterations) == ("interrupted", 0)
    told: list[str] = []
    resumed = train(
        config, resume=early.run_dir, progress=lambda row: told.append(row["phase"]), world=toy_world
    )
    assert (resumed.ended, resumed.iterations) == ("finished", 2)
    assert "references" not in told


def test_a_disk_that_takes_nothing_more_costs_no_checkpoint(
    tmp_path: Path, uninterrupted: TrainResult
) -> None:
    """The kernel refuses every write beyond some bytes of a file, as a full disk would."""
    config = fault_config(tmp_path, "full", ITERATIONS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(row: dict[str, Any]) -> None:
        if row.get("iteration") == 3 and row["phase"] == "training":
            resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))

    try:
        with pytest.raises(TrainingFailure, match=r"the checkpoint of iteration 4 could not be written") as e:
            train(config, progress=fill, world=toy_world)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(e.value)
    run_dir = config.run_dir
    assert nothing_half_written(run_dir)
    assert [row["iteration"] for row in read_rows(run_dir / "progress.jsonl")] == [1, 2, 3]
    assert checkpoints.read_state(checkpoints.newest(run_dir)).iteration == 2
    load_policy(run_dir / "policy")
    resumed = train(config, resume=run_dir, world=toy_world)
    assert_the_same_run(resumed, uninterrupted)


def test_trajectories_that_cannot_be_written_are_said_and_training_goes_on(tmp_path: Path) -> None:
    config = toy_config(tmp_path, name="unwritten")
    config.run_dir.mkdir()
    (config.run_dir / "trajectories").write_text("in the way")
    result = train(config, world=toy_world)
    assert result.ended == "finished"
    origin, event = read_events(result.run_dir)
    assert (origin.kind, origin.iteration) == ("disk", 0)
    assert origin.sentence.startswith("what trajectories come from cannot be written (File exists)")
    assert (event.kind, event.iteration) == ("disk", 1)
    assert event.sentence == "trajectories cannot be written (16 episodes are lost); training goes on"
    rows = read_rows(result.run_dir / "progress.jsonl")
    assert [row["unwritten_trajectories"] for row in rows] == [16, 16]


def recorded_backbone(folder: Path) -> ToyBackbone:
    (folder / str(os.getpid())).touch()
    return ToyBackbone()


@contextmanager
def recorded_world(config: RunConfig) -> Iterator[session.World]:
    folder = config.run_dir / "pids"
    folder.mkdir()
    yield session.World(functools.partial(recorded_backbone, folder), make_client, "toy")


def test_when_all_env_runners_are_killed_they_come_back_and_it_is_said(tmp_path: Path) -> None:
    config = toy_config(
        tmp_path,
        ppo=replace(toy_config(tmp_path).ppo, iterations=100_000),
        resources=ResourcesConfig(num_env_runners=2, slots=4, groups=2),
        checkpoints=CheckpointConfig(every=100_000, trajectories=False),
    )
    episodes: list[int] = []

    def kill_and_await(row: dict[str, Any]) -> None:
        if row["phase"] != "training":
            return
        episodes.append(row["episodes"])
        if row["iteration"] == 2:
            for path in (config.run_dir / "pids").iterdir():
                os.kill(int(path.name), signal.SIGKILL)
        elif len(episodes) > 4 and episodes[-2:] == [16, 16]:
            os.kill(os.getpid(), signal.SIGINT)

    result = train(config, progress=kill_and_await, world=recorded_world)
    assert result.ended == "interrupted"
    assert min(episodes) < 16
    said = [event for event in read_events(result.run_dir) if event.kind == "lost_episodes"]
    assert said[0].numbers["episodes"] < 16
    assert said[-1].sentence == "all episodes come back again"
