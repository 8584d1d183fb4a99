"""`addiffusion doctor`: a table of what is there and what is missing.

Always true here: every row that failed has a hint; the exit code is 0 if none failed and 1 otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from cluster.checks import checks
from tune_configs.loading import compose


def examine(overrides: Sequence[str]) -> int:
    """Run all checks for the configuration and print them; the exit code."""
    table = Table("", "what", "found", "hint", box=None)
    failed = 0
    for check in checks(compose(overrides)):
        failed += not check.passed
        mark = "[green]ok[/green]" if check.passed else "[red]missing[/red]"
        table.add_row(mark, check.name, check.found, "" if check.passed else check.hint)
    console = Console()
    console.print(table)
    console.print(f"{failed} of {table.row_count} checks failed." if failed else "Ready: addiffusion train")
    return 1 if failed else 0
