"""A training run on the toy world in a process of its own, which tests may kill; or which kills itself.

    python -m tests.learner.toy_run ADDRESS FOLDER NAME ITERATIONS [checkpoint|iteration]

It joins the Ray at ADDRESS, which goes on living. `checkpoint` and `iteration` say where it sends itself
SIGKILL: half-way through writing the checkpoint of iteration 4, or with half of the fifth iteration's
trajectories on disk.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import ray

from actors import trajectory_store
from learner import checkpoints
from learner.config import CheckpointConfig, PPOSettings, RunConfig
from learner.guard_config import ProgressConfig, WatchConfig
from learner.train import train
from tests.learner.toy import toy_config, toy_world


def fault_config(folder: Path, name: str, iterations: int) -> RunConfig:
    """Everything that has a state is on: a price that moves, a watch that keeps the best policy."""
    config = toy_config(
        folder,
        name=name,
        ppo=PPOSettings(iterations=iterations, episodes_per_iteration=16, minibatch_size=64, hidden=(32,)),
        checkpoints=CheckpointConfig(every=2, keep=2),
        watch=WatchConfig(every=3, prompts=4, share=0.5, keep="best"),
        progress=ProgressConfig(pictures=2, pictures_every=3),
    )
    return replace(config, reward=replace(config.reward, target_nfe=2.0))


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def die_in_checkpoint() -> None:
    ordinary: Callable[[], dict[str, Any]] = checkpoints._random_state
    written = []

    def last_words() -> dict[str, Any]:
        written.append(1)
        if len(written) == 3:  # those of iterations 0, 2 and 4
            die()
        return ordinary()

    checkpoints._random_state = last_words


def die_in_iteration() -> None:
    ordinary = trajectory_store.write

    def half(trajectories: Any, path: Path, weights_seq_no: int) -> None:
        if path.name.startswith("iteration-000004"):
            path.with_name(f".{path.name}.{os.getpid()}").write_bytes(b"PAR1 half")
            die()
        ordinary(trajectories, path, weights_seq_no)

    trajectory_store.write = half


if __name__ == "__main__":
    address, runs_dir, name, iterations, *where = sys.argv[1:]
    ray.init(address=address, log_to_driver=False)
    for fault in where:
        {"checkpoint": die_in_checkpoint, "iteration": die_in_iteration}[fault]()
    result = train(fault_config(Path(runs_dir), name, int(iterations)), world=toy_world)
    sys.stdout.write(f"{result.ended}\n")
