"""What ends a training run before its last iteration, and what lets it go on.

Always true here: a number that is not finite never reaches the saved policy; a signal asks for a clean
end and is obeyed after the iteration under way.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, Self

import torch

from learner.events import EventLog, Kind
from learner.guard_config import CollapseGuard, GuardsConfig
from learner.hacking import Evaluation, find_hacking


class TrainingFailure(RuntimeError):  # noqa: N818
    """Training cannot go on; the message says why, `kind` as which event. The last saved policy is good."""

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind = kind


def check_finite(values: Mapping[str, float], weights: Mapping[str, torch.Tensor], iteration: int) -> None:
    """Raise TrainingFailure for the first metric or weight that is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingFailure(
                f"iteration {iteration}: {name} is {value}; nothing of it was saved", "not_finite"
            )
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise TrainingFailure(
                f"iteration {iteration}: weights {name} are not finite; nothing was saved", "not_finite"
            )


class LostEpisodes:
    """For how long iterations have come back with too few episodes, while a dead env runner is replaced."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self._since: float | None = None

    def update(self, episodes: int, now: float) -> float | None:
        """Seconds since the first of these iterations; None if this one is whole. `now` in seconds."""
        if episodes >= self.expected:
            self._since = None
            return None
        self._since = now if self._since is None else self._since
        return now - self._since


class CollapseDetector:
    """True once the policy has done one thing only for `patience` iterations.

    Collapsed means: one action above `share` of all decisions, the same NFE for every episode (standard
    deviation below `spread` of the mean), and no chance in it (mean entropy below `entropy`). One sign alone
    can be right: a long schedule is mostly `continue`, and a good policy is sure of itself.
    """

    def __init__(self, config: CollapseGuard) -> None:
        self.config = config
        self.history: deque[bool] = deque(maxlen=config.patience)

    def update(self, row: Mapping[str, Any]) -> bool:
        """Take one iteration's row of progress.jsonl."""
        config = self.config
        one_action = max(row["actions"].values()) > config.share
        one_length = row["nfe_std"] < config.spread * max(row["nfe"], 1.0)
        self.history.append(one_action and one_length and row["entropy"] < config.entropy)
        return len(self.history) == self.history.maxlen and all(self.history)


class Guards:
    """The guards of one run, fed with its rows: each writes its events, and says whether it ends the run.

    A spell (of lost episodes, of collapse) is one event when it begins, not one an iteration.
    """

    def __init__(self, config: GuardsConfig, episodes: int, events: EventLog) -> None:
        self._config = config
        self._events = events
        self._lost = LostEpisodes(episodes)
        self._collapse = CollapseDetector(config.collapse)
        self._returns: list[tuple[int, float]] = []
        self._told: set[Kind] = set()
        self._warned_of_loss = False

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take up the rows that a resumed run has already."""
        for row in rows:
            if row["episodes"]:
                self._collapse.update(row)
                self._returns.append((row["iteration"], row["return"]))

    def after_iteration(self, row: Mapping[str, Any], now: float) -> str | None:
        """What ends the run after this row, if anything. Raises TrainingFailure for lost episodes."""
        self._look_for_losses(row["episodes"], now)
        if row["episodes"] == 0:
            return None
        self._returns.append((row["iteration"], row["return"]))
        collapsed, action = self._collapse.update(row), self._config.collapse.action
        if not collapsed:
            self._told.discard("collapse")
        elif action != "ignore" and "collapse" not in self._told:
            self._told.add("collapse")
            name, share = max(row["actions"].items(), key=lambda item: item[1])
            self._events.record(
                "collapse",
                f"for {self._config.collapse.patience} iterations {share:.0%} of all decisions were {name} "
                f"and every image cost the same {row['nfe']:.1f} NFE",
                {"share": share, "nfe": row["nfe"], "nfe_std": row["nfe_std"], "entropy": row["entropy"]},
                stops=action == "stop",
            )
        return "collapsed" if collapsed and action == "stop" else None

    def after_evaluation(self, evaluations: Sequence[Evaluation]) -> str | None:
        """What ends the run after the last of these, if anything."""
        guard = self._config.hacking
        if guard.action == "ignore":
            return None
        found = find_hacking(evaluations, self._returns, guard.confidence)
        if found is None:
            self._told.discard("reward_hacking")
        elif "reward_hacking" not in self._told:
            self._told.add("reward_hacking")
            self._events.record(
                "reward_hacking",
                f"since iteration {found.since} the return rises while held-out quality fell by "
                f"{found.drop:.3f}, by at least {found.at_least:.3f} at {guard.confidence:.0%} confidence",
                {"since": found.since, "drop": found.drop, "at_least": found.at_least, "tau": found.tau},
                stops=guard.action == "stop",
            )
        return "reward hacking" if found is not None and guard.action == "stop" else None

    def _look_for_losses(self, episodes: int, now: float) -> None:
        guard, expected = self._config.lost_episodes, self._lost.expected
        seconds = self._lost.update(episodes, now)
        numbers = {"episodes": episodes, "expected": expected}
        if seconds is None:
            if "lost_episodes" in self._told:
                self._events.record("lost_episodes", "all episodes come back again", numbers)
            self._told.discard("lost_episodes")
            self._warned_of_loss = False
            return
        if "lost_episodes" not in self._told:
            self._told.add("lost_episodes")
            self._events.record(
                "lost_episodes",
                f"{episodes} of {expected} episodes came back; the others are lost, and what made them is "
                "started again",
                numbers,
            )
        if seconds < guard.patience_s or guard.action == "ignore":
            return
        sentence = (
            f"for {seconds:.0f} s only part of the episodes came back (now {episodes} of {expected}); the "
            "env runners' own messages say why"
        )
        if guard.action == "stop":
            raise TrainingFailure(sentence, "lost_episodes")
        if not self._warned_of_loss:
            self._warned_of_loss = True
            self._events.record("lost_episodes", sentence, {**numbers, "seconds": seconds})


_STDERR = 2
_ASKED = b"asked to end: what is under way is finished first; once more ends at once\n"


class StopRequest:
    """While open, SIGINT and SIGTERM set `signalled` instead of ending the process; a second one does.

    That they were heard is said at once: an iteration may take minutes.
    """

    def __init__(self) -> None:
        self.signalled = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: whoever runs us handles signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signalled:
            raise KeyboardInterrupt
        self.signalled = True
        with contextlib.suppress(OSError):  # not print, which may be what was interrupted
            os.write(_STDERR, _ASKED)
