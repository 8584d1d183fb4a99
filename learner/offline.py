"""The offline entry: from stored episodes to a policy that is saved, registered and ready to use.

Always true here: no image is made; what is left behind is what `train` leaves: config.yaml (of the run that
gathered the episodes, under the new name), progress.jsonl, policy/; offline.yaml says what was asked for.
Held-out prompts are measured on and never learnt from. The policy that is kept is that of the iteration
with the lowest loss on them.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from actors.errors import UserError
from actors.files import written_aside
from actors.policy import PolicyNetwork, save_policy
from actors.trajectory_origin import Origin, common_origin
from learner import registry
from learner.connection import connected
from learner.guards import StopRequest, TrainingFailure, check_finite
from learner.offline_config import OfflineConfig
from learner.offline_data import Survey, survey
from learner.progress import progress_file
from learner.registration import patiently
from learner.tracking import first_line

Report = Callable[[dict[str, Any]], None]


#: What the kept iteration is chosen by; where it was not measured, the last one is kept.
_CRITERION = {"bc": "held_out_nll", "dpo": "held_out_dpo_loss", "marwil": "held_out_weighted_nll"}


@dataclass(frozen=True)
class OfflineResult:
    """What an offline training left behind. `ended`: "finished" or "interrupted"."""

    run_dir: Path
    policy_dir: Path
    model_version: str | None
    ended: str
    seconds: float


def train_offline(config: OfflineConfig, report: Report | None = None) -> OfflineResult:
    """Learn from stored episodes; `report` gets every row of progress.jsonl.

    Raises UserError for what the user can mend, TrainingFailure for numbers that are not finite.
    """
    started = time.monotonic()
    config.validate()
    run_dir = config.run_dir
    if (run_dir / "progress.jsonl").exists():
        raise UserError(f"name={config.name}: {run_dir} holds a run already; give another name")
    folders = config.folders
    origin = common_origin(folders, same_reward=config.algorithm != "bc")
    found = survey(folders, config.held_out, origin.gamma)
    existed = run_dir.exists()
    _prepare(config, origin)
    torch.set_num_threads(config.torch_threads)
    try:
        with _ray(config), StopRequest() as stop:  # in this order: Ray takes SIGTERM for itself
            ended, kept = _learn(config, origin, found, report or (lambda row: None), stop, started)
    except UserError:
        if not existed:
            shutil.rmtree(run_dir, ignore_errors=True)
        raise
    version = _register(config, origin, ended, found, kept)
    return OfflineResult(run_dir, run_dir / "policy", version, ended, time.monotonic() - started)


def _ray(config: OfflineConfig) -> contextlib.AbstractContextManager[None]:
    if config.algorithm == "dpo":
        return contextlib.nullcontext()
    return connected(None, config.num_cpus or os.cpu_count() or 1)


def _updates(
    config: OfflineConfig, origin: Origin, found: Survey
) -> Iterator[tuple[dict[str, float], PolicyNetwork]]:
    if config.algorithm == "dpo":
        from learner.stop_classifier import stop_updates

        return stop_updates(config, origin)
    from learner.offline_rllib import rllib_updates

    return rllib_updates(config, origin, found)


def _learn(
    config: OfflineConfig,
    origin: Origin,
    found: Survey,
    report: Report,
    stop: StopRequest,
    started: float,
) -> tuple[str, dict[str, Any]]:
    """All iterations, or those until a signal; gives what ended it, and the kept iteration's row."""
    file = progress_file(config.run_dir / "progress.jsonl", 1)
    observer, criterion = origin.observer(), _CRITERION[config.algorithm]
    kept: dict[str, Any] = {}
    with contextlib.closing(_updates(config, origin, found)) as updates:  # type: ignore[type-var]
        for iteration, (numbers, network) in enumerate(updates, start=1):
            if found.held_out is not None and config.algorithm == "dpo":
                # When to stop is what preferences change: what was done tells nothing of it.
                stop_action = origin.actions.index("stop")
                numbers = numbers | found.held_out.measure_others(network, observer, stop_action)
            elif found.held_out is not None:
                numbers = numbers | found.held_out.measure(network, observer)
            check_finite(numbers, network.state_dict(), iteration)
            row: dict[str, Any] = {"iteration": iteration, "seconds": time.monotonic() - started, **numbers}
            if criterion not in row or row[criterion] < kept.get(criterion, math.inf):
                save_policy(config.run_dir / "policy", network, policy_metadata(config, origin, iteration))
                kept = row
            if error := file.append(row):
                raise TrainingFailure(f"progress.jsonl cannot be written ({error.strerror or error})", "disk")
            report(row | {"iterations": config.iterations})
            if stop.signalled:
                return "interrupted", kept
    return "finished", kept


def policy_metadata(config: OfflineConfig, origin: Origin, iteration: int) -> dict[str, Any]:
    """The metadata of the run that gathered the episodes, and how this policy came from them."""
    return {
        **origin.metadata,
        "run": config.name,
        "seed": config.seed,
        "iteration": iteration,
        "offline": {"algorithm": config.algorithm, "behaviour": origin.metadata["run"]},
    }


def _prepare(config: OfflineConfig, origin: Origin) -> None:
    """config.yaml, so that everything that takes a run takes this one; offline.yaml."""
    for name, content in (("config.yaml", _run_config(config, origin)), ("offline.yaml", config.as_dict())):
        try:
            with written_aside(config.run_dir / name) as aside:
                aside.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        except OSError as error:
            raise UserError(f"runs_dir={config.runs_dir}: cannot write there ({error.strerror})") from error


def _run_config(config: OfflineConfig, origin: Origin) -> dict[str, Any]:
    """The configuration of the run that gathered the episodes, under this run's name."""
    return {**origin.config, "name": config.name, "seed": config.seed, "runs_dir": config.runs_dir}


def _register(
    config: OfflineConfig, origin: Origin, ended: str, found: Survey, kept: dict[str, Any]
) -> str | None:
    settings = config.registry
    if not settings.enabled:
        return None
    uri = settings.tracking_uri or registry.tracking_uri(config.run_dir.parent)
    attempt = functools.partial(_new_version, config, origin, uri, ended, kept, found)
    try:
        return patiently(attempt, settings.patience_s)
    except Exception as error:  # whatever a server, a proxy, a database or a disk may raise
        raise UserError(
            f"registry {uri}: does not take the policy ({first_line(error)}); it is in "
            f"{config.run_dir / 'policy'}"
        ) from error


def _new_version(
    config: OfflineConfig, origin: Origin, uri: str, ended: str, kept: dict[str, Any], found: Survey
) -> str:
    return registry.register(
        config.run_dir / "policy",
        name=registry.model_name(origin.config["backbone"]["name"]),
        uri=uri,
        run_id=registry.new_run(uri, config.registry.experiment, config.name, config.as_dict()),
        metrics={**kept, "behaviour_return": found.mean_return, "episodes": float(found.episodes)},
        step=kept["iteration"],
        config=_run_config(config, origin),
        tags={"backbone": origin.metadata["backbone"], "run_dir": str(config.run_dir), "ended": ended},
        alias=config.registry.alias,
    )
