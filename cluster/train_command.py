"""`addiffusion train`: train, register, evaluate, report.

Always true here: what can be found wrong is found before Ray starts and before a folder is made; a run that
was interrupted or that fails later keeps its checkpoint, and the last line says how to go on with it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from actors.errors import UserError
from cluster.runs import CONFIG, existing_parent, find_run, free_name
from rewards_service.arithmetic import required_outputs
from rewards_service.scorers_config import ScorersConfig, check_files
from tune_configs.loading import Settings, compose, settings_from_yaml

if TYPE_CHECKING:
    from learner.train import TrainResult


DISK_BYTES = 200_000_000
"""Free space that a run needs: checkpoints, trajectories, registry and report take about half of it."""
FAILED = 1
"""The exit code of a training that could not go on."""
INTERRUPTED = 130
"""The exit code that shells give for Ctrl-C."""


def train_and_report(overrides: Sequence[str], *, resume: str | None, dry_run: bool) -> int:
    """The whole way from options to a report, with `dry_run` only the options; gives the exit code."""
    run_dir = None if resume is None else find_run(resume, Path(compose().run.runs_dir))
    settings = _new_run(overrides) if run_dir is None else settings_from_yaml(run_dir / CONFIG, overrides)
    if dry_run:
        typer.echo(settings.to_yaml(), nl=False)
        return 0
    check_inputs(settings)
    check_reward_models(settings)
    check_devices(settings)
    from learner.guards import TrainingFailure

    try:
        result = _train(settings, run_dir)
    except TrainingFailure as failure:
        typer.echo(f"error: {failure}", err=True)
        return FAILED
    if result.ended == "interrupted":
        typer.echo(
            f"stopped after iteration {result.iterations}; "
            f"go on with: addiffusion train --resume {result.run_dir}"
        )
        return INTERRUPTED
    version = f", version {result.model_version} in the registry" if result.model_version else ""
    typer.echo(f"policy: {result.policy_dir} ({result.ended}{version})")

    from cluster.evaluate_command import run_evaluation

    run_evaluation(
        result.policy_dir,
        settings.evaluation,
        result.run_dir,
        result.model_version,
        tracking_uri=settings.run.registry.tracking_uri,
    )
    return 0


def check_inputs(settings: Settings) -> None:
    """Look at the disk, the prompts of both parts, the actions and the baselines, before anything starts."""
    from actors.actions import make_actions
    from actors.prompt_hub import PREFIX
    from evaluation.baselines import check_baselines
    from evaluation.evaluate import evaluation_requests

    free = shutil.disk_usage(existing_parent(Path(settings.run.runs_dir))).free
    if free < DISK_BYTES:
        raise UserError(
            f"runs_dir={settings.run.runs_dir}: {free / 1e6:.0f} MB free on its disk; "
            f"give a folder with at least {DISK_BYTES / 1e6:.0f} MB"
        )
    settings.run.prompts.load()
    if settings.evaluation.prompts == "shapes" or settings.evaluation.prompts.startswith(PREFIX):
        settings.evaluation.load_prompts(limit=1)
    else:
        evaluation_requests(settings.evaluation)  # also whether they are enough to compare on
    make_actions(settings.run.engine.actions)
    check_baselines(settings.evaluation.baselines, settings.run.engine)


def check_reward_models(settings: Settings) -> None:
    """See whether reward models give what is asked of them, and whether their files and folders are there.

    What a hub holds is seen when it is fetched.
    """
    run, evaluation = settings.run, settings.evaluation
    looked_at = run.observation.look_scores
    watched = (run.watch.score,) if run.watch.every else ()
    for option, named, asked in (
        ("backbone.scorers", run.backbone.scorers, (*looked_at, *required_outputs(run.reward), *watched)),
        ("evaluation.scorers", evaluation.scorers, looked_at),
    ):
        try:
            if named is not None:
                check_files(named, option)
            if isinstance(named, ScorersConfig):
                named.check_outputs(asked, option)
        except ValueError as error:
            raise UserError(str(error)) from error


def check_devices(settings: Settings) -> None:
    """See whether the GPUs of both parts are here, where no cluster is named that may have them."""
    from cluster.evaluate_command import is_here

    run, evaluation = settings
    is_here(run.backbone.device, run.resources.address, "backbone.device", "resources.address")
    is_here(evaluation.device, evaluation.address, "evaluation.device", "evaluation.address")


def _new_run(overrides: Sequence[str]) -> Settings:
    """The composed settings; a run that the user has not named gets a name that is free."""
    settings = compose(overrides)
    if any(override.startswith("name=") for override in overrides):
        return settings
    name = free_name(settings.run.name, Path(settings.run.runs_dir))
    return settings._replace(run=replace(settings.run, name=name))


def _train(settings: Settings, resume: Path | None) -> TrainResult:
    """Train with a live line. A new run that ends before its first policy leaves no folder behind."""
    from learner.progress import LiveLine, format_row
    from learner.run_lock import RunIsBusyError
    from learner.train import train

    run_dir = resume or settings.run.run_dir
    existed = run_dir.exists()
    typer.echo(f"run: {run_dir}")
    try:
        if not sys.stdout.isatty():
            return train(settings.run, resume=resume, progress=lambda row: typer.echo(format_row(row)))
        with LiveLine() as line:
            return train(settings.run, resume=resume, progress=line)
    except RunIsBusyError:
        raise
    except (UserError, OSError):
        if not existed and not (run_dir / "policy").exists():
            shutil.rmtree(run_dir, ignore_errors=True)
        raise
