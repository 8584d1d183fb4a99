"""Reward hacking: the training return rises while the quality of held-out images falls.

Always true here: nothing that the exact verifier says is used; a fall that saved compute pays for is no
hacking; the test is of pairs (the same prompts and seeds under two policies), so that the spread between
prompts does not count as noise.

The test compares the latest evaluation with the best earlier one (by mean quality) and sees hacking where
all three hold:
1. quality: the one-sided lower bound of the mean paired difference, best minus latest, is above 0. Student's
   t with n - 1 degrees of freedom over the n prompts, at level (1 - confidence) / k: the best of k earlier
   evaluations looks better than it is, and Bonferroni's correction pays for the choice;
2. utility (quality less the held-out price of compute): the same bound is above 0;
3. return: Kendall's tau of training returns against iterations between the two evaluations is positive at
   the 5% level, one-sided. A rank test, as returns have outliers; fewer than four iterations show nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rewards_service.arithmetic import utility

_TREND_LEVEL = 0.05
_TREND_ITERATIONS = 4


@dataclass(frozen=True)
class Evaluation:
    """The greedy policy of one iteration on n held-out prompts; all sequences are in their order.

    quality: raw scores; nfe, cost: in NFE, the latter with looks; seconds: what the evaluation took.
    """

    iteration: int
    quality: tuple[float, ...]
    nfe: tuple[float, ...]
    cost: tuple[float, ...]
    seconds: float

    def utilities(self) -> NDArray[np.float64]:
        """[n] held-out utilities."""
        pairs = zip(self.quality, self.cost, strict=True)
        return np.array([utility(quality, cost) for quality, cost in pairs])

    @property
    def utility(self) -> float:
        """Their mean."""
        return float(self.utilities().mean())


@dataclass(frozen=True)
class Hacking:
    """Quality fell by `drop` since iteration `since`, surely by `at_least`; tau of the returns since then."""

    since: int
    drop: float
    at_least: float
    tau: float


def find_hacking(
    evaluations: Sequence[Evaluation], returns: Sequence[tuple[int, float]], confidence: float
) -> Hacking | None:
    """Test the last of `evaluations`; `returns` are (iteration, mean return)."""
    if len(evaluations) < 2:
        return None
    *earlier, latest = evaluations
    best = max(earlier, key=lambda evaluation: float(np.mean(evaluation.quality)))
    level = (1.0 - confidence) / len(earlier)
    drops = np.array(best.quality) - np.array(latest.quality)
    at_least = lower_bound(drops, level)
    if at_least <= 0 or lower_bound(best.utilities() - latest.utilities(), level) <= 0:
        return None
    between = [(at, value) for at, value in returns if best.iteration <= at <= latest.iteration]
    if len(between) < _TREND_ITERATIONS:
        return None
    tau, p_value = stats.kendalltau(*zip(*between, strict=True), alternative="greater")
    if not p_value < _TREND_LEVEL:  # NaN where all returns are the same
        return None
    return Hacking(best.iteration, float(drops.mean()), at_least, float(tau))


def lower_bound(differences: NDArray[np.float64], level: float) -> float:
    """One-sided lower confidence bound, at 1 - level, of a mean of independent differences (Student's t)."""
    n = len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    return float(differences.mean() - stats.t.ppf(1.0 - level, n - 1) * error)
