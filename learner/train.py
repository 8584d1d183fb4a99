"""The training entry: from a config to a policy that is saved, registered and ready to use.

Always true here: one seed and one number of env runners, by which a batch is ordered, give one result,
whatever the groups, slots and timing; a resumed run goes on with the counters, the optimiser, the random
numbers and the price of compute it had; nothing is started before the config has been found possible; two
processes never train one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from actors.contracts import EpisodeRequest
from actors.errors import UserError
from actors.files import written_aside
from learner import checkpoints, session
from learner.config import RunConfig
from learner.guards import StopRequest, TrainingFailure
from learner.held_out import split_prompts
from learner.mlflow_run import read_config
from learner.run import Progress, Run
from learner.run_lock import alone

#: Options that a resumed run keeps, by section; all of a section where none is named.
_KEPT: dict[str, tuple[str, ...]] = {
    "engine": (),
    "observation": (),
    "algorithm": ("name",),
    "ppo": ("hidden",),
}


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    `ended`: "finished", "time limit", "interrupted", "collapsed" or "reward hacking".
    """

    run_dir: Path
    policy_dir: Path
    model_version: str | None
    iterations: int
    seconds: float
    ended: str


def train(
    config: RunConfig,
    *,
    resume: Path | None = None,
    progress: Progress | None = None,
    world: Callable[[RunConfig], AbstractContextManager[session.World]] = session.world,
) -> TrainResult:
    """Train a policy; `resume` is the folder of an earlier run to go on with, under its own config.

    `progress` gets a dict at every step of the way, "phase" says which: starting, waiting (for what the
    cluster lacks, as a sentence), references (done, total), training (a row of progress.jsonl), event (an
    `Event`), registering. `world` opens backbone and rewards.
    Raises UserError for what the user can mend, TrainingFailure when training cannot go on.
    """
    started = time.monotonic()
    config.validate()
    run_dir = config.run_dir if resume is None else resume
    if resume is not None:
        checkpoints.newest(run_dir)
        check_kept(config, read_config(run_dir))
    requests = training_requests(config)
    report = progress or (lambda row: None)
    with ExitStack() as stack:
        stack.enter_context(alone(run_dir))
        checkpoint = None if resume is None else checkpoints.newest(run_dir)
        state = None if checkpoint is None else checkpoints.read_state(checkpoint)
        if resume is None:
            if (run_dir / "progress.jsonl").exists():
                raise UserError(
                    f"name={config.name}: {run_dir} holds a run already; resume it or give another name"
                )
            write_config(run_dir, config)
        checkpoints.clear_unfinished(run_dir)
        report({"phase": "starting"})
        torch.set_num_threads(config.resources.torch_threads)
        stack.enter_context(
            session.ray_session(config, lambda sentence: report({"phase": "waiting", "sentence": sentence}))
        )
        stop = stack.enter_context(StopRequest())  # after Ray, which takes SIGTERM for itself
        run = Run(config, run_dir, requests, stack.enter_context(world(config)), report)
        stack.callback(run.close)
        try:
            if checkpoint is not None and state is not None:
                run.resume(checkpoint, state)
                write_config(run_dir, config)  # now that these options have been found to fit
            else:
                run.calibrate()
            ended = run.iterate(stop)
            version = run.register(ended, time.monotonic() - started)
        except TrainingFailure as failure:
            run.events.record(failure.kind, str(failure), stops=True)
            raise
    return TrainResult(run_dir, run.policy_dir, version, run.iteration, time.monotonic() - started, ended)


def check_kept(config: RunConfig, stored: Mapping[str, Any]) -> None:
    """Raise UserError where a run that goes on is given an option that its checkpoints do not fit.

    That is what its networks are made for, and what its references, scales and episodes come from.
    """
    now = config.as_dict()
    for section, names in _KEPT.items():
        before = stored.get(section, {})
        for name in names or tuple(now[section]):
            if name in before and now[section][name] != before[name]:
                raise UserError(
                    f"{section}.{name}={now[section][name]}: a run that goes on keeps what it began with, "
                    f"{before[name]}; give it to a new run"
                )


def training_requests(config: RunConfig) -> tuple[EpisodeRequest, ...]:
    """The fixed set that is trained on: every prompt that is not held out, with every seed."""
    options = config.prompts
    prompts, _ = split_prompts(config)
    generator = np.random.default_rng([options.seed, 1])
    seeds = generator.integers(0, 2**31, size=(len(prompts), options.seeds))
    return tuple(
        EpisodeRequest(prompt.text, int(seed), prompt.tier)
        for prompt, row in zip(prompts, seeds, strict=True)
        for seed in row
    )


def write_config(run_dir: Path, config: RunConfig) -> None:
    """Write config.yaml, by which everything else knows a run. Raises UserError where the disk refuses."""
    try:
        with written_aside(run_dir / "config.yaml") as aside:
            aside.write_text(yaml.safe_dump(config.as_dict(), sort_keys=False))
    except OSError as error:
        raise UserError(f"runs_dir={config.runs_dir}: cannot write there ({error.strerror})") from error
