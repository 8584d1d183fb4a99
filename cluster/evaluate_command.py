"""`addiffusion evaluate`: a policy against fixed schedules, on prompts that it was not trained on.

Always true here: a run's evaluation goes into the run's folder, that of any other policy into a folder of
its own among the runs; both end with a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from cluster.runs import CONFIG, find_policy, settings_of
from evaluation.config import EvaluationConfig


def evaluate_and_report(policy: str, overrides: Sequence[str], *, runs_dir: Path) -> None:
    """Evaluate a run's policy, a policy's folder, or a registered model.

    The options are the run's own, or for other policies those of config.yaml, changed by `overrides`.
    """
    policy_dir = find_policy(policy, runs_dir)
    settings = settings_of(policy_dir, overrides)
    in_run = (policy_dir.parent / CONFIG).is_file()
    run_dir = policy_dir.parent if in_run else runs_dir / f"evaluation-{Path(policy).name}"
    run_evaluation(policy_dir, settings.evaluation, run_dir)


def run_evaluation(
    policy_dir: Path, config: EvaluationConfig, run_dir: Path, model_version: str | None = None
) -> None:
    """Evaluate, write the report, and say the outcome in the report's own first sentence."""
    from evaluation.evaluate import evaluate
    from evaluation.headline import opening_sentence
    from evaluation.progress import progress_bar
    from evaluation.report import write_report

    with progress_bar() as progress:
        summary = evaluate(policy_dir, run_dir, config, progress, model_version=model_version)
    typer.echo(opening_sentence(summary))
    typer.echo(f"report: {write_report(run_dir)}")
