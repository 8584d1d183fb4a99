"""`addiffusion gates` and `addiffusion transfer`: what a run has shown, and what it does elsewhere.

Always true here: gates read what is in the run's folder and measure nothing; transfer writes into it, and
into nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.runs import find_policy, find_run, settings_by_name
from evaluation.tables import outcome_of

_COLOURS = {True: "green", False: "red", None: "dim"}


def print_gates(run: str, *, runs_dir: Path, as_json: bool) -> None:
    """One line each; UserError for a run that was not evaluated."""
    from evaluation.gates import gates

    found = gates(find_run(run, runs_dir))
    if as_json:
        typer.echo(json.dumps([asdict(gate) for gate in found], indent=2, ensure_ascii=False))
        return
    table = Table("", "outcome", "what was measured", box=None, padding=(0, 1), pad_edge=False)
    for gate in found:
        outcome = f"[{_COLOURS[gate.passed]}]{outcome_of(gate.passed)}[/]"
        number = f"\n{escape(gate.number)}" if gate.number else ""
        interval = f" (95%: {escape(gate.interval)})" if gate.interval else ""
        table.add_row(
            gate.name, outcome, f"{escape(gate.statement)}{number}{interval}\nnext: {escape(gate.next_step)}"
        )
    Console().print(table)


def run_transfer(
    policy: str,
    overrides: Sequence[str],
    *,
    solvers: str,
    backbones: str,
    prompts: str,
    runs_dir: Path,
) -> None:
    """Measure every combination and print the matrix; the run's report shows it from then on."""
    from actors.policy_folder import read_trained_policy
    from actors.prompts import EVALUATION_OPTIONS
    from cluster.evaluate_command import where_the_device_is
    from evaluation.report import write_report
    from evaluation.summary import SUMMARY_FILE
    from evaluation.transfer import places, transfer, transfer_table

    policy_dir = find_policy(policy, runs_dir).absolute()
    config = settings_by_name(policy, runs_dir, overrides).evaluation
    run_dir = policy_dir.parent
    datasets = list(filter(None, prompts.split(",")))
    for dataset in datasets:  # what a place cannot do is in its cell, a slip of the pen is not
        replace(config, prompts=dataset).load_prompts(1, EVALUATION_OPTIONS._replace(source="--prompts"))
    measure = partial(
        transfer,
        policy_dir,
        run_dir,
        backbones=["", *filter(None, backbones.split(","))],
        solvers=places(solvers, read_trained_policy(policy_dir).engine),
        datasets=datasets or [config.prompts],
        progress=_say,
    )
    cells = where_the_device_is(config, lambda config: measure(config=config))
    typer.echo(transfer_table(cells).markdown(), nl=False)
    if (run_dir / SUMMARY_FILE).exists():
        typer.echo(f"report: {write_report(run_dir)}")


def _say(cell: str) -> None:
    typer.echo(cell, err=True)
