"""One MLflow run for one training run: real sqlite, a real server that goes away, registering later."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from actors.errors import UserError
from actors.policy import PolicyNetwork, save_policy
from learner import registry
from learner.config import RegistryConfig
from learner.events import EventLog, read_events
from learner.json_lines import JsonLines, read_rows
from learner.mlflow_run import MlflowRun
from learner.registration import Result, read_result, register_patiently, register_run
from learner.tracking import Tracking
from tests.learner.toy import toy_config
from tune_configs.loading import settings_from_yaml


def row(iteration: int) -> dict[str, Any]:
    return {"iteration": iteration, "episodes": 8, "time": 1e9 + iteration, "return": 0.1 * iteration}


def a_run(runs_dir: Path, uri: str | None = None, iterations: int = 4) -> Path:
    """The folder of a run that has ended, as training leaves it."""
    settings = RegistryConfig(tracking_uri=uri, experiment="addiffusion", patience_s=0.0)
    config = replace(toy_config(runs_dir, name="mine"), registry=settings)
    folder = config.run_dir
    save_policy(folder / "policy", PolicyNetwork(6, 3, (8,)), {"backbone": "toy", "iteration": iterations})
    (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
    rows = JsonLines(folder / "progress.jsonl")
    for iteration in range(1, iterations + 1):
        rows.append(row(iteration))
    Result("finished", iterations, 12.5).write(folder)
    return folder


def curve(client: MlflowClient, run_id: str, name: str = "return") -> list[tuple[int, float]]:
    found = client.get_metric_history(run_id, name)
    return sorted((point.step, round(point.value, 6)) for point in found)


def wait_until(true: Callable[[], bool], what: str, patience_s: float = 400.0) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, f"not within {patience_s:.0f} s: {what}"
        time.sleep(0.1)


def test_a_resumed_run_goes_on_in_its_mlflow_run_and_registering_uses_it(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    events = EventLog(folder, lambda row: None)
    first = Tracking(folder, [], events)
    for iteration in (1, 2, 3):
        first.log(row(iteration))
    first.close(120.0)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "iteration-000004.png").write_bytes(b"a picture")
    resumed = Tracking(folder, read_rows(folder / "progress.jsonl")[:2], events)
    for iteration in (3, 4):  # done again after a kill
        resumed.log(row(iteration))
    resumed.close(120.0)
    assert not read_events(folder)

    client = MlflowClient(tracking_uri=registry.tracking_uri(tmp_path))
    run_id = MlflowRun(folder).open()
    assert curve(client, run_id) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert [each.path for each in client.list_artifacts(run_id, "pictures")] == [
        "pictures/iteration-000004.png"
    ]
    run = client.get_run(run_id)
    assert run.info.run_name == "mine"
    assert run.data.params["ppo.iterations"] == "2"

    version = register_run(folder)
    assert read_result(folder).model_version == version == "1"
    found = client.get_model_version(registry.model_name("shapes"), version)
    assert found.run_id == run_id
    ended = client.get_run(run_id)
    assert ended.info.status == "FINISHED"
    assert ended.data.metrics["policy/iteration"] == 4.0
    assert len(curve(client, run_id)) == 4
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_a_registry_that_does_not_answer_costs_the_version_only_and_says_the_command(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{bound.getsockname()[1]}"  # nobody listens
        folder = a_run(tmp_path, uri)
        assert register_patiently(folder, 0.0, EventLog(folder, lambda row: None)) is None
    (event,) = read_events(folder)
    assert event.kind == "registry"
    assert event.sentence.endswith("register it with: addiffusion registry register mine")
    assert "\n" not in event.sentence
    assert read_result(folder).model_version is None
    # Later, with a registry that is there, the command needs nothing but the folder.
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["registry"]["tracking_uri"] = None
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert register_run(folder) == "1"
    client = MlflowClient(tracking_uri=registry.tracking_uri(tmp_path))
    assert len(curve(client, MlflowRun(folder).open())) == 4


class Server:
    """A real `mlflow server`, by its own process id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.txt").open("ab") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        wait_until(self.answers, "the server answers")

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mlflow_goes_away_and_comes_back_and_nothing_is_lost_or_waited_for(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        server.start()
        folder = a_run(tmp_path, server.uri, iterations=9)
        events = EventLog(folder, lambda row: None)
        tracking = Tracking(folder, [], events, retry_s=0.5)
        client = MlflowClient(tracking_uri=server.uri)
        for iteration in (1, 2, 3):
            tracking.log(row(iteration))
        wait_until(lambda: not MlflowRun(folder).unsent([row(3)]), "the first rows are sent")
        server.kill()
        for iteration in (4, 5, 6):
            tracking.log(row(iteration))
        wait_until(lambda: len(read_events(folder)) == 1, "it is said that MLflow is away")
        tracking.log(row(7))
        server.start()
        wait_until(lambda: not MlflowRun(folder).unsent([row(7)]), "what was kept is sent")
        tracking.close(60.0)
        said = [event.sentence for event in read_events(folder)]
        assert "does not answer" in said[0]
        assert "answers again" in said[1]
        assert len(said) == 2
        assert curve(client, MlflowRun(folder).open()) == [(n, round(0.1 * n, 6)) for n in range(1, 8)]
        assert register_run(folder) == "1"
        assert len(curve(client, MlflowRun(folder).open())) == 9, "registering sends what was left"
    finally:
        server.kill()


def test_user_and_password_of_the_address_are_not_stored_and_come_from_the_environment_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = "http://someone:hidden-word@127.0.0.1:9/mlflow"
    folder = a_run(tmp_path, uri)
    EventLog(folder, lambda shown: None).record("tracking", f"MLflow at {uri} does not answer")
    assert read_events(folder)[0].sentence == "MLflow at http://***@127.0.0.1:9/mlflow does not answer"
    stored = [file for file in folder.rglob("*") if file.is_file()]
    assert {"config.yaml", "events.jsonl"} <= {file.name for file in stored}
    assert not [file for file in stored if b"hidden-word" in file.read_bytes()]
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as raised:
        MlflowRun(folder)
    assert "hidden-word" not in str(raised.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert MlflowRun(folder).uri == uri
    resumed = settings_from_yaml(folder / "config.yaml")
    assert resumed.run.registry.tracking_uri == uri
    assert "hidden-word" not in resumed.to_yaml()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:other@elsewhere:9")
    with pytest.raises(UserError):
        MlflowRun(folder)
