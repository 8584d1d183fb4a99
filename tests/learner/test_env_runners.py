"""Work is spread over the env runners that live, and done once; with none left the wait ends."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.contracts import EpisodeRequest
from learner.env_runners import EnvRunners
from learner.events import EventLog, read_events
from learner.guards import TrainingFailure

REQUESTS = [EpisodeRequest("a prompt", seed) for seed in range(7)]


@dataclass(frozen=True)
class Done:
    request: EpisodeRequest
    by: int


class FakeGroup:
    """RLlib's group of env runners: `dying` of them give nothing back and are gone from then on."""

    def __init__(self, alive: list[int], dying: list[int], restorable: bool = True) -> None:
        self.alive, self.dying, self.restorable = alive, dying, restorable

    def num_healthy_remote_env_runners(self) -> int:
        return len(self.alive)

    def healthy_env_runner_ids(self) -> list[int]:
        return list(self.alive)

    def foreach_env_runner(self, work: Any, local_env_runner: bool) -> list[Any]:
        assert not local_env_runner
        results = [work(SimpleNamespace(index=index)) for index in self.alive if index not in self.dying]
        self.alive = [index for index in self.alive if index not in self.dying]
        return results

    def restore(self, _: Any) -> None:
        if self.restorable:
            self.alive = list(self.dying)
            self.dying = []


def runners(group: FakeGroup, folder: Path, patience_s: float = 60.0) -> EnvRunners:
    algorithm: Any = SimpleNamespace(env_runner_group=group, restore_env_runners=group.restore)
    return EnvRunners(algorithm, 2, patience_s, EventLog(folder, lambda row: None))


def work(runner: Any, share: list[EpisodeRequest]) -> list[Done]:
    return [Done(request, runner.index) for request in share]


def test_each_request_is_done_once_in_its_place(tmp_path: Path) -> None:
    done = runners(FakeGroup([1, 2], []), tmp_path).spread(REQUESTS, work)
    assert [each.request for each in done] == REQUESTS
    assert [each.by for each in done] == [1, 2, 1, 2, 1, 2, 1]


def test_what_a_dying_one_leaves_is_done_by_those_that_live(tmp_path: Path) -> None:
    done = runners(FakeGroup([1, 2], [2]), tmp_path).spread(REQUESTS, work)
    assert [each.request for each in done] == REQUESTS
    assert {each.by for each in done} == {1}


def test_all_gone_and_back_is_said(tmp_path: Path) -> None:
    done = runners(FakeGroup([1, 2], [1, 2]), tmp_path).spread(REQUESTS, work)
    assert [each.request for each in done] == REQUESTS
    assert [event.sentence for event in read_events(tmp_path)] == [
        "all 2 env runners are gone; they are started again",
        "2 of 2 env runners are back",
    ]


def test_all_gone_for_good_is_a_failure_after_the_patience(tmp_path: Path) -> None:
    waiting = runners(FakeGroup([], [], restorable=False), tmp_path, patience_s=0.5)
    with pytest.raises(TrainingFailure, match=r"no env runner came back within 0\.5 s") as failure:
        waiting.wait()
    assert failure.value.kind == "env_runners"


TWO_NODES = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from learner.config import CheckpointConfig
from learner.resources import ResourcesConfig
from learner.train import train
from tests.learner.toy import toy_config, toy_world

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
second = cluster.add_node(num_cpus=2, object_store_memory=10**8)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
folder = Path(sys.argv[1])
config = toy_config(
    folder,
    ppo=replace(toy_config(folder).ppo, iterations=100_000),
    resources=ResourcesConfig(num_env_runners=2, slots=4, groups=2, cpus_per_env_runner=1.0),
    checkpoints=CheckpointConfig(every=100_000, trajectories=False),
)
episodes = []

def lose_a_node(row):
    if row["phase"] == "event":
        print(row["sentence"], flush=True)
    if row["phase"] == "training":
        episodes.append(row["episodes"])
        if row["iteration"] == 2:
            cluster.remove_node(second, allow_graceful=False)
            cluster.add_node(num_cpus=2, object_store_memory=10**8)
        elif len(episodes) > 3 and min(episodes) < 16 and episodes[-2:] == [16, 16]:
            os.kill(os.getpid(), signal.SIGINT)

result = train(config, progress=lose_a_node, world=toy_world)
print(result.ended, min(episodes), episodes[-1], flush=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.multinode
@pytest.mark.timeout(900)
def test_a_lost_node_takes_its_episodes_and_training_goes_on_on_the_others(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ended, fewest, last = done.stdout.splitlines()[-1].split()
    assert (ended, last) == ("interrupted", "16")
    assert int(fewest) < 16
    assert "all episodes come back again" in done.stdout
