"""Sweeps on the toy world, small enough that a trial takes a second or two.

    python -m tests.tune_configs.toy_sweep ADDRESS FOLDER

joins the Ray at ADDRESS and goes on with the sweep that the folder holds, as a process that tests may kill.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from tests.learner.toy import toy_world
from tune_configs.ledger import Outcome
from tune_configs.sweep import Prepared, prepare, run_sweep, stored
from tune_configs.sweep_files import as_sweep

TOY = (
    "resources=trial",
    "resources.slots=16",
    "resources.memo_mib=8",
    "solver=ddim",
    "engine={num_steps: 5, warmup_steps: 0, max_nfe: 12, max_attempts: 4, stop_from: 0.0}",
    "engine.restart_needs_look=false",
    "reward=balanced",
    "reward={beta: {clip: 0.4, image_reward: 1.0, image_reward_now: 0.0}, c_nfe: 0.02}",
    "ppo={iterations: 2, episodes_per_iteration: 16, minibatch_size: 64, hidden: [32], continue_logit: 0.0}",
    "prompts={limit: 8, seeds: 2}",
    "watch={every: 1, prompts: 8, score: image_reward}",
    "checkpoints.every=1",
)
"""Overrides that make the default configuration a training on the toy world."""
JUDGE = {"prompts": 8, "seeds": 2, "fewest_prompts": 4, "resamples": 500}


def toy_sweep(
    folder: Path, content: Mapping[str, Any], *, overrides: tuple[str, ...] = (), file: str = "toy"
) -> Prepared:
    """A sweep of toy trainings in `folder`; `content` as a file of tune_configs/sweep/ has it."""
    whole = {"description": "A toy.", "judge": JUDGE, "memory_reserve_gib": 0.0, **content}
    uri = f"sqlite:///{folder.parent / 'mlflow.db'}"
    return prepare(as_sweep("sweep", file, whole), (*TOY, *overrides), folder, uri)


def run(prepared: Prepared) -> dict[str, Outcome]:
    """Run it in this session's Ray; its lines go to stdout."""
    return run_sweep(prepared, lambda line: print(line, flush=True), open_world=toy_world)  # noqa: T201


if __name__ == "__main__":
    address, folder = sys.argv[1:]
    ray.init(address=address, log_to_driver=False)
    sweep, overrides, _ = stored(Path(folder))
    run(prepare(sweep, overrides, Path(folder), f"sqlite:///{Path(folder).parent / 'mlflow.db'}"))
