"""`addiffusion doctor`: a table of what is there and what is missing, and what the run's memory consists of.

Always true here: every row that failed has a hint; the exit code is 0 if none failed and 1 otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cluster.check import Check, guarded
from cluster.checks import checks
from cluster.gpu_checks import card_bytes
from learner.placement import RUNNER, demands
from tune_configs.loading import Settings, compose

if TYPE_CHECKING:
    from evaluation.memory_audit import ProcessMemory

_LOG_WIDTH = 160
"""In a job's log, or a file, where nobody says how wide it is."""


def examine(overrides: Sequence[str], *, gpu: str | None = None) -> int:
    """Run all checks for the configuration and print them; the exit code.

    gpu: a card by name, which the memory audit is held against instead of this machine's.
    """
    if gpu is not None:
        card_bytes(gpu)
    settings = compose(overrides)
    rows, parts = memory(settings, gpu)
    whole = [Column(name, overflow="fold") for name in ("found", "hint")]  # else long words end in dots
    table = Table("", "what", *whole, box=None)
    failed = 0
    for check in (*checks(settings), *rows):
        failed += not check.passed
        mark = "[green]ok[/green]" if check.passed else "[red]missing[/red]"
        told = (check.name, check.found, "" if check.passed else check.hint)
        table.add_row(mark, *map(escape, told))  # brackets in what was found are no markup
    console = Console()
    if not console.is_terminal:
        console = Console(width=_LOG_WIDTH)
    console.print(table)
    if parts:
        console.print(parts_table(parts))
    console.print(f"{failed} of {table.row_count} checks failed." if failed else "Ready: addiffusion train")
    return 1 if failed else 0


def memory(settings: Settings, gpu: str | None) -> tuple[list[Check], list[ProcessMemory]]:
    """The memory audit's rows, and the processes they are about."""
    from cluster.memory_checks import NAME, audits

    run = settings.run
    rows: list[Check] = []
    parts: list[ProcessMemory] = []

    def audit() -> Check:
        wanted = demands(run.resources, run.rewards)
        pools = [demand for demand in wanted if demand.what != RUNNER]
        for check, of_check in audits(run, pools, gpu):
            rows.append(check)
            parts.extend(of_check)
        return rows.pop()

    last = guarded(NAME, audit)
    return [*rows, last], parts


def parts_table(parts: Sequence[ProcessMemory]) -> Table:
    """What each process holds, in GiB."""
    table = Table("GiB", "weights, activations, state, margin", "total", box=None)
    for each in parts:
        told = ", ".join(f"{name} {size:.2f}" for name, size in each.parts().items())
        table.add_row(escape(each.what), told, f"{each.total / 2**30:.2f}")
    return table
