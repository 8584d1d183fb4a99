"""The curriculum: which requests an iteration draws, by the difficulty that was measured on their references.

Always true here: difficulty is a rank among the run's own requests, hardest where the reference of the same
prompt and seed has the lowest quality; what is drawn is a function of the iteration's number and these ranks
alone, so that a resumed run goes on as if it had never stopped; what no phase draws comes from the passes
over all requests, in which each has its turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from actors.errors import UserError


@dataclass(frozen=True)
class Phase:
    """A part of the run in which some requests are drawn more often.

    until: where it ends, as a share of the run's iterations (it begins where the phase before it ends);
    from_quantile, to_quantile: the requests drawn, by difficulty, 0 the easiest and 1 the hardest;
    share_start, share_end: share of an iteration's episodes drawn from these alone, each as likely as the
    other, at the phase's beginning and at its end, linear between.
    """

    until: float
    from_quantile: float = 0.0
    to_quantile: float = 1.0
    share_start: float = 1.0
    share_end: float = 1.0


@dataclass(frozen=True)
class CurriculumConfig:
    """Phases one after the other; after the last one, and without any, all requests alike."""

    phases: tuple[Phase, ...] = ()

    def validate(self) -> None:
        """Raise UserError for the first value that cannot work."""
        begin = 0.0
        for number, phase in enumerate(self.phases):
            option = f"curriculum.phases[{number}]"
            if not begin < phase.until <= 1.0:
                raise UserError(f"{option}.until={phase.until}: give a number above {begin:g}, at most 1")
            begin = phase.until
            for name in ("from_quantile", "to_quantile", "share_start", "share_end"):
                if not 0.0 <= getattr(phase, name) <= 1.0:
                    raise UserError(f"{option}.{name}={getattr(phase, name)}: give a number from 0 to 1")
            if phase.from_quantile >= phase.to_quantile:
                raise UserError(
                    f"{option}.to_quantile={phase.to_quantile}: give a number above its from_quantile"
                )


class Focus(NamedTuple):
    """What an iteration draws from besides all requests: indices, the hardest first, and with which share."""

    requests: tuple[int, ...] = ()
    share: float = 0.0


def by_difficulty(qualities: Sequence[float]) -> tuple[int, ...]:
    """Indices of the requests, the one whose reference has the lowest quality first."""
    assert np.isfinite(qualities).all(), "a reference's quality is not finite"
    return tuple(int(index) for index in np.argsort(np.asarray(qualities), kind="stable"))


def focus(config: CurriculumConfig, hardest_first: Sequence[int], iteration: int, iterations: int) -> Focus:
    """What iteration 0, 1, ... of `iterations` draws from. A quantile never holds fewer than one request."""
    begin = 0.0
    for phase in config.phases:
        if iteration < phase.until * iterations:
            done = (iteration - begin * iterations) / ((phase.until - begin) * iterations)
            share = phase.share_start * (1.0 - done) + phase.share_end * done
            return Focus(_between(hardest_first, phase.from_quantile, phase.to_quantile), share)
        begin = phase.until
    return Focus()


def _between(hardest_first: Sequence[int], low: float, high: float) -> tuple[int, ...]:
    count = len(hardest_first)
    # The small number is for 10 * (1 - 0.9), which is 0.999... and means the second request, not the first.
    first = min(math.floor(count * (1.0 - high) + 1e-9), count - 1)
    end = math.floor(count * (1.0 - low) + 1e-9)
    return tuple(hardest_first[first : max(end, first + 1)])
