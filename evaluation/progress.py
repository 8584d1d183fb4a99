"""How far an evaluation is: a bar on a terminal, a line now and then anywhere else.

Always true here: it is on standard error, and only once something has taken five seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

Progress = Callable[[str, int, int], None]
"""Called with the method that got images, how many images are ready, and how many there will be."""

PATIENCE_SECONDS = 5.0
LINE_SECONDS = 15.0
"""Between two lines, where there is no terminal."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A callback for `evaluate` that shows what it is told."""
    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console) as show:
            yield show
    else:
        yield _lines(console)


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    start = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=console)
    task = bar.add_task("images", total=None)

    def show(method: str, done: int, total: int) -> None:
        bar.update(task, description=f"{method:<14}", completed=done, total=total)
        if not bar.live.is_started and time.monotonic() - start > PATIENCE_SECONDS:
            bar.start()

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def _lines(console: Console) -> Progress:
    due = time.monotonic() + PATIENCE_SECONDS

    def show(method: str, done: int, total: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now > due:
            due = now + LINE_SECONDS
            console.print(f"images {done}/{total} · {method}", highlight=False)

    return show
