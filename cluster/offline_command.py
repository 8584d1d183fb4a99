"""`addiffusion offline`: a policy from stored episodes, without denoising an image.

Always true here: what can be found wrong is found before Ray starts; what is made is a run like any other,
which `generate`, `evaluate` and the registry take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
import yaml

from cluster.runs import free_name
from tune_configs.loading import compose_offline

INTERRUPTED = 130
"""The exit code that shells give for Ctrl-C."""


def learn_offline(overrides: Sequence[str], *, dry_run: bool) -> int:
    """The whole way from options to a registered policy, with `dry_run` only the options."""
    config = compose_offline(overrides)
    if not any(override.startswith("name=") for override in overrides):
        config = replace(config, name=free_name(config.name, Path(config.runs_dir)))
    if dry_run:
        typer.echo(yaml.safe_dump(config.as_dict(), sort_keys=False), nl=False)
        return 0
    from learner.offline import train_offline

    typer.echo(f"run: {config.run_dir}")
    result = train_offline(config, lambda row: typer.echo(format_row(row)))
    version = f", version {result.model_version} in the registry" if result.model_version else ""
    typer.echo(f"policy: {result.policy_dir} ({result.ended}{version})")
    if result.ended == "interrupted":
        return INTERRUPTED
    typer.echo(f"how good it is: addiffusion evaluate {result.run_dir}")
    return 0


def format_row(row: Mapping[str, Any]) -> str:
    """A row of progress.jsonl as one readable line."""
    numbers = {
        name.replace("_", " "): value
        for name, value in row.items()
        if name not in ("iteration", "iterations", "seconds")
    }
    listed = " · ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    return f"iteration {row['iteration']}/{row['iterations']} · {listed} · {row['seconds']:.0f} s"
