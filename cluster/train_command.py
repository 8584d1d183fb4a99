"""`addiffusion train`: train, register, evaluate, report.

Always true here: what can be found wrong is found before Ray starts and before a folder is made; a run that
was interrupted or that fails later keeps its checkpoint, and the last line says how to go on with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cluster.runs import CONFIG, find_run, free_name
from tune_configs.loading import Settings, compose, settings_from_yaml

if TYPE_CHECKING:
    from learner.train import TrainResult


INTERRUPTED = 130
"""The exit code that shells give for Ctrl-C."""


def train_and_report(overrides: Sequence[str], *, resume: str | None, dry_run: bool) -> int:
    """The whole way from options to a report, with `dry_run` only the options; gives the exit code."""
    run_dir = None if resume is None else find_run(resume, Path(compose().run.runs_dir))
    settings = _new_run(overrides) if run_dir is None else settings_from_yaml(run_dir / CONFIG, overrides)
    if dry_run:
        typer.echo(settings.to_yaml(), nl=False)
        return 0
    check_prompts(settings)
    result = _train(settings, run_dir)
    if result.ended == "interrupted":
        typer.echo(
            f"stopped after iteration {result.iterations}; "
            f"go on with: addiffusion train --resume {result.run_dir}"
        )
        return INTERRUPTED
    version = f", version {result.model_version} in the registry" if result.model_version else ""
    typer.echo(f"policy: {result.policy_dir} ({result.ended}{version})")

    from cluster.evaluate_command import run_evaluation

    run_evaluation(result.policy_dir, settings.evaluation, result.run_dir, result.model_version)
    return 0


def check_prompts(settings: Settings) -> None:
    """Read the prompts of training and evaluation, so that a bad file is told before anything starts."""
    from actors.prompts import load_prompts

    prompts, evaluation = settings.run.prompts, settings.evaluation
    load_prompts(prompts.source, split=prompts.split, limit=prompts.limit, seed=prompts.seed)
    load_prompts(evaluation.prompts, split=evaluation.split, limit=1, seed=evaluation.seed)


def _new_run(overrides: Sequence[str]) -> Settings:
    """The composed settings; a run that the user has not named gets a name that is free."""
    settings = compose(overrides)
    if any(override.startswith("name=") for override in overrides):
        return settings
    name = free_name(settings.run.name, Path(settings.run.runs_dir))
    return settings._replace(run=replace(settings.run, name=name))


def _train(settings: Settings, resume: Path | None) -> TrainResult:
    typer.echo(f"run: {resume or settings.run.run_dir}")
    from learner.progress import LiveLine
    from learner.train import train

    with LiveLine() as line:
        return train(settings.run, resume=resume, progress=line)
