"""The bar that shows how far an evaluation is.

Always true here: it is drawn on standard error, and only once something has taken five seconds.
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


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A callback for `evaluate` that draws a bar."""
    start = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True))
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
