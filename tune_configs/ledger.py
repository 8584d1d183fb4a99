"""What has become of a sweep's trials: one row of JSON for each that ended, in the sweep's folder.

Tune keeps an experiment's state to restore it; that state is its own, is pickled, and begins trials anew
that were under way. What counts here is smaller: which trials have ended, and with what.

Always true here: a row is written as soon as its trial has ended, whole or not at all; the last row of a
trial counts; a trial is done if it finished or was stopped, and a failed one is tried again by a resumed
sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from learner.json_lines import JsonLines, read_rows
from tune_configs.objective import Measured
from tune_configs.plan import TrialSpec

FILE = "trials.jsonl"
Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """A trial that ended.

    status: stopped is by the scheduler, before its end; ended: how its training ended, as `learner.train`
    says; measured: on the judge's prompts, of a finished one; watched: numbers of its last held-out watch
    (utility, quality, nfe, cost), where it had one; seconds: spent in iterations, those before an
    interruption included; error: of a failed one, in a line.
    """

    spec: TrialSpec
    status: Status
    iterations: int = 0
    seconds: float = 0.0
    ended: str | None = None
    measured: Measured | None = None
    watched: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    def metric(self, name: str) -> float | None:
        """One of `METRICS`, as it was measured, else as it was watched last."""
        if self.measured is not None:
            return self.measured.mean(name)
        return self.watched.get(name)


class Ledger:
    """The rows of one sweep; one process writes."""

    def __init__(self, folder: Path) -> None:
        self._file = JsonLines(folder / FILE)
        self.outcomes = read_outcomes(folder)

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome. Raises OSError where the disk refuses: it could not be resumed from."""
        self.outcomes[outcome.spec.id] = outcome
        if (error := self._file.append(asdict(outcome))) is not None:
            raise error


def is_done(outcomes: Mapping[str, Outcome], spec: TrialSpec) -> bool:
    """Whether this very trial needs no more work; one whose configuration has changed does."""
    found = outcomes.get(spec.id)
    return found is not None and found.status != "failed" and found.spec.key == spec.key


def read_outcomes(folder: Path) -> dict[str, Outcome]:
    """The last outcome of every trial that ended, by its id."""
    return {outcome.spec.id: outcome for outcome in map(_outcome, read_rows(folder / FILE))}


def _outcome(row: dict[str, Any]) -> Outcome:
    told = row["measured"]
    measured = None if told is None else Measured(**{name: tuple(items) for name, items in told.items()})
    return Outcome(**row | {"spec": TrialSpec.of(row["spec"]), "measured": measured})
