"""What ends a training run before its last iteration, and what lets it go on.

Always true here: a number that is not finite never reaches the saved policy; a signal asks for a clean
end and is obeyed after the iteration under way.
"""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Mapping
from types import FrameType
from typing import Any, Self

import torch


class TrainingFailure(RuntimeError):  # noqa: N818
    """Training cannot go on; the message says why. The last saved policy is still good."""


def check_finite(values: Mapping[str, float], weights: Mapping[str, torch.Tensor], iteration: int) -> None:
    """Raise TrainingFailure for the first metric or weight that is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingFailure(f"iteration {iteration}: {name} is {value}; nothing of it was saved")
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise TrainingFailure(f"iteration {iteration}: weights {name} are not finite; nothing was saved")


class LostEpisodes:
    """Bears with iterations that come back with too few episodes while a dead env runner is replaced.

    patience_s: how long they may go on coming back so; the loss of a process is mended long before, an
    error that kills every new one never.
    """

    def __init__(self, expected: int, patience_s: float = 300.0) -> None:
        self.expected = expected
        self.patience_s = patience_s
        self._since: float | None = None

    def update(self, episodes: int, now: float) -> None:
        """Take one iteration's count at a time in seconds. Raises TrainingFailure."""
        if episodes >= self.expected:
            self._since = None
            return
        self._since = now if self._since is None else self._since
        if now - self._since >= self.patience_s:
            raise TrainingFailure(
                f"for {now - self._since:.0f} s only part of the episodes came back (now {episodes} of "
                f"{self.expected}); the env runners' own messages say why"
            )


class CollapseDetector:
    """True once the policy has done one thing only for `patience` iterations.

    Collapsed means: one action above `share` of all decisions, and the same NFE for every episode
    (standard deviation below `spread` of the mean). Either alone can be right: a long schedule is
    mostly `continue`.
    """

    def __init__(self, patience: int = 10, share: float = 0.97, spread: float = 0.01) -> None:
        self.share = share
        self.spread = spread
        self.history: deque[bool] = deque(maxlen=patience)

    def update(self, shares: Mapping[str, float], nfe_mean: float, nfe_std: float) -> bool:
        """Take one iteration's action shares and NFE statistics."""
        one_action = max(shares.values()) > self.share
        one_length = nfe_std < self.spread * max(nfe_mean, 1.0)
        self.history.append(one_action and one_length)
        return len(self.history) == self.history.maxlen and all(self.history)


class StopRequest:
    """While open, SIGINT and SIGTERM set `signalled` instead of ending the process; a second one does."""

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
