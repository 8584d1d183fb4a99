"""`addiffusion front`: several policies in one comparison, for instance those of `tune sweep=pareto`.

Always true here: a sweep stands for its finished trials, variant by variant; policies of one variant are
trainings that differ in their seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer

from actors.errors import UserError
from actors.policy import WEIGHTS_FILE
from cluster.evaluate_command import where_the_device_is
from cluster.runs import check_writable, find_policy, settings_of
from evaluation.config import EvaluationConfig
from tune_configs.ledger import FILE, read_outcomes

FOLDER = "front"


def draw_front(arguments: Sequence[str], *, out: Path | None, runs_dir: Path) -> None:
    """Make what images are missing, write the front and print its table.

    The options are those of the first policy's run, changed by the arguments that are options.
    """
    from evaluation.policy_front import front_sentence, front_table, write_front

    named, overrides = _sorted_out(arguments, runs_dir)
    named = {name: [folder.absolute() for folder in folders] for name, folders in named.items()}
    out = out or runs_dir / FOLDER
    check_writable("--out", out, folder=True)
    first = next(iter(named.values()))[0]
    config = settings_of(first, overrides).evaluation
    front = where_the_device_is(config, partial(_measure, named, runs_dir.absolute()))
    typer.echo(front_table(front).markdown(), nl=False)
    typer.echo(front_sentence(front))
    typer.echo(f"front: {write_front(front, out)}")


def _measure(named: Mapping[str, Sequence[Path]], runs_dir: Path, config: EvaluationConfig) -> dict[str, Any]:
    from evaluation.policy_front import policy_front
    from evaluation.progress import progress_bar

    with progress_bar() as progress:
        return policy_front(named, runs_dir, config, progress)


def _sorted_out(arguments: Sequence[str], runs_dir: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Policies by name, and what of the arguments is an option: no sweep's or run's name, and has a "="."""
    named: dict[str, list[Path]] = {}
    overrides: list[str] = []
    for text in arguments:
        sweep = next((each for each in (runs_dir / text, Path(text)) if (each / FILE).is_file()), None)
        there = any(each.is_dir() for each in (runs_dir / text, Path(text)))
        if sweep is not None:
            for name, folders in _of_sweep(sweep).items():
                named.setdefault(name, []).extend(folders)
        elif text.startswith("@") or ("=" in text and not there):
            overrides.append(text)
        else:
            named.setdefault(Path(text).name, []).append(find_policy(text, runs_dir))
    if not named:
        raise UserError("POLICIES: give a sweep, or runs, policies' folders or name@alias")
    return named, overrides


def _of_sweep(folder: Path) -> dict[str, list[Path]]:
    """The policies of a sweep's finished trials, by variant; fixed schedules among them have none."""
    named: dict[str, list[Path]] = {}
    for outcome in read_outcomes(folder).values():
        policy = folder / outcome.spec.id / "policy"
        if outcome.status == "finished" and (policy / WEIGHTS_FILE).is_file():
            for label in outcome.spec.labels:
                named.setdefault(label.partition("/")[2], []).append(policy)
    if not named:
        raise UserError(
            f"{folder}: none of its trials has finished; `addiffusion tune --resume` goes on with it"
        )
    return named
