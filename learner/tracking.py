"""Sends a run's curves and pictures to MLflow while it trains, in a thread of its own.

Always true here: training never waits for MLflow and never ends because of it; whatever fails is tried again,
with everything that has gathered meanwhile; the first failure and the recovery are events.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learner.events import EventLog
from learner.mlflow_run import MlflowRun

_PAUSE_S = 1.0
"""Between two calls, so that quick iterations go in one."""
_LONGEST_RETRY_S = 60.0


class Tracking:
    """The sending thread. `rows`: those of progress.jsonl that the run has already.

    retry_s: the pause after the first failure; each further one is twice as long.
    """

    def __init__(
        self,
        run_dir: Path,
        rows: Sequence[Mapping[str, Any]],
        events: EventLog,
        *,
        retry_s: float = 5.0,
    ) -> None:
        self._run = MlflowRun(run_dir)
        self._events = events
        self._retry_s = retry_s
        self._rows = list(rows)
        self._news = True
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Send a row's points, and new pictures, as soon as may be; returns at once."""
        with self._changed:
            self._rows.append(dict(row))
            self._news = True
            self._changed.notify()

    def close(self, wait_s: float) -> None:
        """Try to send what is left, for at most `wait_s`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(wait_s)

    def _work(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news or self._closing)
                closing, rows = self._closing, list(self._rows)
                self._news = False
            try:
                self._run.send(rows)
            except Exception as error:  # whatever a server, a proxy, a database or a disk may raise
                failures += 1
                if failures == 1:
                    self._events.record(
                        "tracking",
                        f"MLflow at {self._run.uri} does not answer; curves are kept and sent later "
                        f"({first_line(error)})",
                    )
                self._news = True
            else:
                if failures:
                    self._events.record(
                        "tracking", f"MLflow at {self._run.uri} answers again", {"failures": failures}
                    )
                failures = 0
                with self._changed:
                    self._rows = [*self._run.unsent(self._rows)]
            if closing:
                return
            pause = min(self._retry_s * 2 ** (failures - 1), _LONGEST_RETRY_S) if failures else _PAUSE_S
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=pause)


def first_line(error: Exception) -> str:
    """What a library says, which may say it in pages."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
