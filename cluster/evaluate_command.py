"""`addiffusion evaluate`: a policy against fixed schedules, on prompts that it was not trained on.

Always true here: a run's evaluation goes into the run's folder, that of any other policy into a folder of
its own among the runs; both end with a report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import typer

from actors.errors import UserError
from cluster.runs import CONFIG, find_policy, settings_by_name
from evaluation.config import EvaluationConfig

_T = TypeVar("_T")


def evaluate_and_report(policy: str, overrides: Sequence[str], *, runs_dir: Path) -> None:
    """Evaluate a run's policy, a policy's folder, or a registered model.

    The options are those of the policy's run, changed by `overrides`.
    """
    policy_dir = find_policy(policy, runs_dir)
    settings = settings_by_name(policy, runs_dir, overrides)
    in_run = (policy_dir.parent / CONFIG).is_file()
    run_dir = policy_dir.parent if in_run else runs_dir / f"evaluation-{Path(policy).name}"
    run_evaluation(policy_dir, settings.evaluation, run_dir, tracking_uri=settings.run.registry.tracking_uri)


def run_evaluation(
    policy_dir: Path,
    config: EvaluationConfig,
    run_dir: Path,
    model_version: str | None = None,
    *,
    tracking_uri: str | None = None,
) -> None:
    """Evaluate, write the report, and say the outcome in the report's own first sentence.

    The registry keeps the outcome with the version that holds this very policy, if it has one.
    """
    from evaluation.headline import opening_sentence
    from evaluation.report import write_report

    measure = partial(_evaluate, policy_dir.absolute(), run_dir.absolute(), model_version)
    summary = where_the_device_is(config, measure)
    _record(policy_dir, summary, run_dir, tracking_uri)
    typer.echo(opening_sentence(summary))
    typer.echo(f"report: {write_report(run_dir)}")


def where_the_device_is(config: EvaluationConfig, measure: Callable[[EvaluationConfig], _T]) -> _T:
    """What `measure` gives, called here, or on the cluster where the device is a GPU and none is here.

    A training's command runs on a cluster's head, which often has none. Where it goes elsewhere it takes the
    place of one of `evaluation.workers`, so that no more GPUs are held than these. UserError without a
    cluster.
    """
    if is_here(config.device, config.address, "evaluation.device", "evaluation.address"):
        return measure(config)
    import ray

    from learner.connection import connected

    fewer = replace(config, workers=max(1, config.workers - 1))
    with connected(config.address, option="evaluation.address"):
        task = ray.remote(num_cpus=1, num_gpus=config.worker_gpus, max_retries=0)(_call)
        try:
            found: _T = ray.get(task.remote(measure, fewer))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
    return found


def is_here(device: str, address: str | None, option: str, address_option: str) -> bool:
    """Whether it is no GPU, or this machine has one. UserError where it has none and no cluster is named."""
    import torch

    if not device.startswith("cuda") or torch.cuda.is_available():
        return True
    if address is None:
        raise UserError(
            f"{option}={device}: no GPU is here; give {option}=cpu, or a cluster's {address_option}"
        )
    return False


def _call(measure: Callable[[EvaluationConfig], _T], config: EvaluationConfig) -> _T:
    return measure(config)


def _evaluate(
    policy_dir: Path, run_dir: Path, model_version: str | None, config: EvaluationConfig
) -> dict[str, Any]:
    from evaluation.evaluate import evaluate
    from evaluation.progress import progress_bar

    with progress_bar() as progress:
        return evaluate(policy_dir, run_dir, config, progress, model_version=model_version)


def _record(policy_dir: Path, summary: Mapping[str, Any], run_dir: Path, tracking_uri: str | None) -> None:
    """H2's interval as tags of the version, the summary beside it; a failing one is said, no error."""
    from evaluation.summary import SUMMARY_FILE
    from learner import registry
    from learner.champions import Champions

    if tracking_uri is None and not registry.sqlite_file(registry.tracking_uri(run_dir.parent)):
        return
    try:
        champions = Champions(tracking_uri or registry.tracking_uri(run_dir.parent))
        version = champions.by_weights(registry.weights_digest(policy_dir))
        if version is None:
            return
        h2 = summary["hypotheses"]["H2"]
        low, high = h2["ci95"]
        champions.tag(version, {"h2_estimate": h2["estimate"], "h2_low": low, "h2_high": high})
        champions.attach(version, run_dir / SUMMARY_FILE, "evaluation")
    except UserError as error:
        typer.echo(f"not recorded in the registry: {error}", err=True)
