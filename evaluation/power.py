"""Power analysis: which difference so many prompts and seeds can show, and how many a difference needs.

Always true here: the model is what `statistics.Resampling` resamples by. A paired difference of two methods
is its mean, plus the prompt's own part, plus the seed's; prompts are independent, seeds of a prompt share
its part. So more seeds only help until the prompts' own variance is all that is left. Power is that of the
paired t test on prompt means, which the bootstrap of the mean agrees with from some 30 prompts on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student

POWER = 0.8
ALPHA = 0.05
MOST_PROMPTS = 10_000_000


@dataclass(frozen=True, slots=True)
class Variation:
    """Variances of a paired difference: of its prompts' own parts, and between the seeds of a prompt."""

    between_prompts: float
    within_prompt: float

    def __post_init__(self) -> None:
        for value in (self.between_prompts, self.within_prompt):
            assert value >= 0, "a variance is never negative"
            assert math.isfinite(value)

    def standard_error(self, prompts: int, seeds: int) -> float:
        """Of the mean difference over prompts x seeds images a method."""
        return math.sqrt((self.between_prompts + self.within_prompt / seeds) / prompts)


def variation_of(differences_PS: ArrayLike) -> Variation:
    """Both variances from a pilot's differences, one row a prompt and one column a seed (at least 2 x 1).

    Moment estimates of the one-way random effects model (Searle, Casella and McCulloch, 1992, chapter 3).
    With one seed they cannot be told apart, and all of it counts as the prompts'.
    """
    differences = np.asarray(differences_PS, dtype=np.float64)
    assert differences.ndim == 2, "one row a prompt, one column a seed"
    assert len(differences) >= 2, "one prompt has no variance"
    assert np.isfinite(differences).all(), "a missing or non-finite value reached the power analysis"
    seeds = differences.shape[1]
    of_means = float(differences.mean(1).var(ddof=1))
    if seeds == 1:
        return Variation(of_means, 0.0)
    within = float(differences.var(axis=1, ddof=1).mean())
    return Variation(max(0.0, of_means - within / seeds), within)


def power_of(
    difference: float, variation: Variation, prompts: int, seeds: int, alpha: float = ALPHA
) -> float:
    """The chance that a two-sided test at `alpha` finds a true difference (0 to 1)."""
    noncentrality, critical = _test(difference, variation, prompts, seeds, alpha)
    if math.isinf(noncentrality):
        return 1.0
    # The lower tail as the mirrored upper one: SciPy's cdf is NaN there for noncentralities of 8 and more.
    return float(sum(nct.sf(critical, prompts - 1, side * noncentrality) for side in (1.0, -1.0)))


def non_inferiority_power(
    margin: float,
    variation: Variation,
    prompts: int,
    seeds: int,
    difference: float = 0.0,
    alpha: float = ALPHA,
) -> float:
    """The chance that the lower end of the 1 - alpha interval is above -margin, at a true difference."""
    noncentrality, critical = _test(margin + difference, variation, prompts, seeds, alpha)
    if math.isinf(noncentrality):
        return 1.0 if noncentrality > 0 else 0.0
    return float(nct.sf(critical, prompts - 1, noncentrality))


def detectable_difference(
    variation: Variation, prompts: int, seeds: int, power: float = POWER, alpha: float = ALPHA
) -> float:
    """The smallest true difference that prompts x seeds images a method show with this power.

    It is also the smallest margin within which two equal methods are shown to be equal, but for less than 1%.
    """
    assert alpha < power < 1
    error = variation.standard_error(prompts, seeds)
    if error == 0.0:
        return 0.0
    upper = error
    while power_of(upper, variation, prompts, seeds, alpha) < power:
        upper *= 2
    return float(
        brentq(
            lambda value: power_of(value, variation, prompts, seeds, alpha) - power,
            0.0,
            upper,
            xtol=error * 1e-6,
        )
    )


def prompts_needed(
    difference: float, variation: Variation, seeds: int, power: float = POWER, alpha: float = ALPHA
) -> int:
    """The fewest prompts with so many seeds each that show a true difference with this power."""
    assert difference != 0, "no number of prompts shows a difference of nothing"
    enough = 2
    while power_of(difference, variation, enough, seeds, alpha) < power:
        enough *= 2
        if enough > MOST_PROMPTS:
            raise ValueError(f"difference={difference:g}: more than {MOST_PROMPTS:,} prompts are needed")
    short = enough // 2
    while enough - short > 1:
        middle = (short + enough) // 2
        if power_of(difference, variation, middle, seeds, alpha) < power:
            short = middle
        else:
            enough = middle
    return enough


def _test(
    difference: float, variation: Variation, prompts: int, seeds: int, alpha: float
) -> tuple[float, float]:
    """The t statistic's noncentrality and its critical value."""
    assert prompts >= 2
    assert seeds >= 1
    error = variation.standard_error(prompts, seeds)
    if error == 0.0:
        noncentrality = math.copysign(math.inf, difference) if difference else 0.0
    else:
        noncentrality = difference / error
    return noncentrality, float(student.ppf(1 - alpha / 2, prompts - 1))
