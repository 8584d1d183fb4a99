"""What happened to a run that a person should know of: `events.jsonl` in its folder, and its console.

Always true here: an event is one plain sentence with its numbers; writing one never raises, and one that
could not be written yet is written with the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from actors.errors import redacted
from learner.json_lines import JsonLines, read_rows

FILE = "events.jsonl"
Kind = Literal[
    "collapse",
    "not_finite",
    "lost_episodes",
    "env_runners",
    "reward_hacking",
    "budget",
    "disk",
    "tracking",
    "registry",
    "resumed",
]
"""docs/troubleshooting.md says what each means and what to do."""
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Event:
    """time: seconds since 1970; iteration: the last one that had ended; stops: it ended the run."""

    time: float
    iteration: int
    kind: Kind
    sentence: str
    numbers: dict[str, float] = field(default_factory=dict)
    stops: bool = False


class EventLog:
    """The events of one run; earlier ones of a resumed run stay. Any thread may record."""

    def __init__(self, run_dir: Path, report: Callable[[dict[str, Any]], None]) -> None:
        self._file = JsonLines(run_dir / FILE)
        self._report = report
        self.iteration = 0

    def record(
        self, kind: Kind, sentence: str, numbers: Mapping[str, float] | None = None, *, stops: bool = False
    ) -> None:
        """Write an event of the present iteration, and show it."""
        told = redacted(sentence)  # libraries' errors repeat the address they were given
        event = Event(time.time(), self.iteration, kind, told, dict(numbers or {}), stops)
        self._file.append(asdict(event))
        self._report({"phase": "event", **asdict(event)})


def read_events(run_dir: Path) -> list[Event]:
    """All events of a run, oldest first."""
    return [Event(**row) for row in read_rows(run_dir / FILE)]
