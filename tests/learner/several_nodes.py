"""A Ray cluster of several nodes on one machine, with a training run across them, in a process of its own.

    python -m tests.learner.several_nodes SCENARIO FOLDER

Nodes are real Ray nodes (a raylet and its workers each); their GPUs are logical ones, which nobody uses.
What happened is printed, one JSON object a line, for the test that started this.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from actors.errors import UserError
from learner import session
from learner.config import CheckpointConfig, RunConfig
from learner.resources import DENOISER, REWARDS, ResourcesConfig
from learner.train import train
from rewards_service import service
from rewards_service.contracts import Scorer
from tests.learner.toy import ToyBackbone, ToyScorer, toy_config

ADDRESS = "RAY_ADDRESS"
EPISODES = 16


class RecordedBackbone(ToyBackbone):
    """Leaves a file that says on which node, and on which GPUs, it was made."""

    def __init__(self, folder: Path) -> None:
        record(folder, "denoiser")


def recorded_scorers(folder: Path) -> list[Scorer]:
    """The toy's scorer; leaves such a file too."""
    record(folder, "rewards")
    return [ToyScorer()]


def record(folder: Path, role: str) -> None:
    where = {
        "role": role,
        "node": ray.get_runtime_context().get_node_id(),
        "gpus": [int(gpu) for gpu in ray.get_gpu_ids()],
    }
    (folder / f"{role}-{os.getpid()}.json").write_text(json.dumps(where))


@contextlib.contextmanager
def world(folder: Path, config: RunConfig) -> Iterator[session.World]:
    """The toy's backbone and scorer, reserved and placed as the configuration says."""
    specs = [
        replace(spec, identity="toy", build=functools.partial(recorded_scorers, folder))
        for spec in session.reward_pools(config)
    ]
    name = "toy-rewards"
    replicas = service.start(name, specs)
    try:
        yield session.World(
            functools.partial(RecordedBackbone, folder), functools.partial(service.connect, name), "toy"
        )
    finally:
        for replica in replicas:
            ray.kill(replica)


class Nodes:
    """The cluster: a head without anything, and nodes by name."""

    def __init__(self) -> None:
        memory = {"object_store_memory": 80 * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **memory})
        self.by_name: dict[str, Any] = {}
        os.environ[ADDRESS] = self.cluster.address

    def add(self, name: str, *offers: str, cpus: int = 2, gpus: int = 0) -> None:
        self.by_name[name] = self.cluster.add_node(
            num_cpus=cpus,
            num_gpus=gpus,
            resources=dict.fromkeys(offers, 1),
            object_store_memory=80 * 2**20,
        )

    def kill(self, name: str) -> None:
        self.cluster.remove_node(self.by_name.pop(name), allow_graceful=False)

    def names(self) -> dict[str, str]:
        """Names by Ray's id."""
        return {node.node_id: name for name, node in self.by_name.items()}


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201


def config_for(folder: Path, **resources: Any) -> RunConfig:
    options: dict[str, Any] = {
        "num_env_runners": 2,
        "slots": 4,
        "groups": 2,
        "cpus_per_env_runner": 1.0,
        "denoiser_resource": DENOISER,
        "cpus_per_reward_replica": 0.5,
        "rewards_resource": REWARDS,
        "address": "auto",
        "patience_s": 120.0,
    }
    return toy_config(
        folder,
        ppo=replace(toy_config(folder).ppo, iterations=100_000, episodes_per_iteration=EPISODES),
        resources=ResourcesConfig(**options | resources),
        checkpoints=CheckpointConfig(every=100_000),
    )


def run(folder: Path, config: RunConfig, each: Callable[[dict[str, Any]], bool]) -> None:
    """Train until `each` row says that it is enough."""
    started = time.monotonic()

    def progress(row: dict[str, Any]) -> None:
        if row["phase"] in ("event", "waiting"):
            say(said=row["sentence"], kind=row.get("kind", "waiting"))
        if row["phase"] == "training" and each(row):
            os.kill(os.getpid(), signal.SIGINT)

    result = train(config, progress=progress, world=functools.partial(world, folder))
    say(ended=result.ended, seconds=time.monotonic() - started)


def placed(folder: Path, nodes: Nodes) -> None:
    """Say where everything was made so far."""
    names = nodes.names()
    for path in sorted(folder.glob("*-*.json")):
        where = json.loads(path.read_text())
        say(**where | {"node": names.get(where["node"], "gone")})


def losing(folder: Path, nodes: Nodes) -> None:
    """Two nodes of denoisers, one of them lost in the middle; then the node of the rewards, replaced."""
    nodes.add("denoiser-1", DENOISER, cpus=1)
    nodes.add("rewards-1", REWARDS)
    nodes.add("denoiser-2", DENOISER, cpus=1)
    nodes.cluster.wait_for_nodes()
    episodes: list[int] = []
    lost_at: list[int] = []

    def each(row: dict[str, Any]) -> bool:
        episodes.append(row["episodes"])
        since = len(episodes) - lost_at[-1] if lost_at else len(episodes)
        if not lost_at and since == 2:
            placed(folder, nodes)
            nodes.kill("denoiser-2")
            lost_at.append(len(episodes))
        elif len(lost_at) == 1 and since > 4 and episodes[-3:] == [EPISODES // 2] * 3:
            say(alone=episodes)
            nodes.add("denoiser-3", DENOISER, cpus=1)
            lost_at.append(len(episodes))
        elif len(lost_at) == 2 and episodes[-2:] == [EPISODES] * 2:
            nodes.kill("rewards-1")
            nodes.add("rewards-2", REWARDS)
            lost_at.append(len(episodes))
        elif len(lost_at) == 3 and since > 2 and episodes[-2:] == [EPISODES] * 2:
            placed(folder, nodes)
            say(episodes=episodes, lost_at=lost_at)
            return True
        return False

    run(folder, config_for(folder), each)


def apart(folder: Path, nodes: Nodes) -> None:
    """Logical GPUs: shares of one where that is asked for, nodes of their own where it is not."""
    nodes.add("both", cpus=8, gpus=2)
    nodes.add("denoisers", DENOISER, cpus=8, gpus=2)
    nodes.add("rewards", REWARDS, cpus=8, gpus=2)
    nodes.cluster.wait_for_nodes()
    halves = {"gpus_per_env_runner": 0.5, "gpus_per_reward_replica": 0.5, "num_env_runners": 1}
    anywhere = {"denoiser_resource": None, "rewards_resource": None}
    cases: dict[str, dict[str, Any]] = {
        "own nodes": halves,
        "asked to share": halves | anywhere | {"share_gpus": True},
        "whole": anywhere | {"gpus_per_env_runner": 1.0, "gpus_per_reward_replica": 1.0},
        "not asked": halves | anywhere,
        "too many": {"gpus_per_env_runner": 1.0, "num_env_runners": 3, "patience_s": 3.0},
        "no such node": {"denoiser_resource": "elsewhere", "patience_s": 0.0},
    }
    for name, options in cases.items():
        say(case=name)
        of_case = folder / name.replace(" ", "-")
        of_case.mkdir()
        try:
            run(of_case, config_for(of_case, **options), lambda row: True)
        except UserError as error:
            say(error=str(error))
        placed(of_case, nodes)


SCENARIOS = {scenario.__name__: scenario for scenario in (losing, apart)}


def main() -> None:
    folder, nodes = Path(sys.argv[2]), Nodes()
    try:
        ray.init(address=nodes.cluster.address, log_to_driver=False, logging_level="ERROR")
        SCENARIOS[sys.argv[1]](folder, nodes)
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()


if __name__ == "__main__":
    main()
