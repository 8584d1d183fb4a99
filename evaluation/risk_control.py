"""Risk control: which of several thresholds keep a mean loss below a limit, with stated confidence.

Always true here: pure mathematics on losses in [0, 1], one a prompt, which are independent draws of the
prompts that the promise is for. The thresholds and their order are fixed before a loss is seen. What is
certified holds for all certified thresholds at once, so choosing among them by cost breaks nothing.

Learn then Test (Angelopoulos, Bates, Candes, Jordan and Lei, 2021, arXiv 2110.01052): each threshold is a
hypothesis "its risk is above delta"; p-values by Hoeffding and Bentkus, which know nothing of the losses but
that they are bounded; fixed-sequence testing from the safest threshold on, up to the first not rejected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binom

Floats = NDArray[np.float64]

_ROUNDING = 1e-9
"""A sum of losses that is a whole number but for rounding is that number."""


@dataclass(frozen=True, slots=True)
class Tested:
    """One threshold: the mean loss measured for it, its p-value, and whether it is certified."""

    threshold: float
    risk: float
    p_value: float
    certified: bool


def hoeffding_bentkus(risk: float, prompts: int, delta: float) -> float:
    """p-value of "the mean loss is above delta", given the mean `risk` of so many losses in [0, 1].

    min(exp(-n h(min(risk, delta), delta)), e P(Binomial(n, delta) <= ceil(n risk))), h the relative entropy
    of two coins (Hoeffding, 1963; Bentkus, 2004; as in Bates et al., 2021, arXiv 2101.02703).
    """
    assert prompts >= 1, prompts
    assert 0.0 <= risk <= 1.0, risk
    assert 0.0 < delta < 1.0, delta
    hoeffding = math.exp(-prompts * relative_entropy(min(risk, delta), delta))
    bentkus = math.e * float(binom.cdf(math.ceil(prompts * risk - _ROUNDING), prompts, delta))
    return min(1.0, hoeffding, bentkus)


def relative_entropy(observed: float, expected: float) -> float:
    """h(a, b) = a ln(a/b) + (1-a) ln((1-a)/(1-b)); 0 ln 0 is 0."""
    total = 0.0
    for a, b in ((observed, expected), (1.0 - observed, 1.0 - expected)):
        if a > 0.0:
            total += a * math.log(a / b)
    return max(total, 0.0)


def upper_bound(risk: float, prompts: int, confidence: float) -> float:
    """The largest mean loss that these losses do not contradict: below it with this confidence.

    Of one threshold that was named beforehand. Up to 1, where nothing is excluded.
    """
    alpha = 1.0 - confidence
    low, high = max(risk, 1e-12), 1.0 - 1e-12
    if hoeffding_bentkus(risk, prompts, high) > alpha:
        return 1.0
    if hoeffding_bentkus(risk, prompts, low) <= alpha:
        return low
    return float(brentq(lambda delta: hoeffding_bentkus(risk, prompts, delta) - alpha, low, high))


def certify(
    losses_PT: ArrayLike, thresholds: Sequence[float], delta: float, confidence: float
) -> list[Tested]:
    """Test thresholds in the order given, the safest first; none is certified after the first that fails.

    losses_PT: [P, T], one row a prompt, each loss in [0, 1]. The chance that any certified threshold has a
    risk above delta is at most 1 - confidence.
    """
    losses = np.asarray(losses_PT, dtype=np.float64)
    assert losses.ndim == 2, losses.shape
    assert losses.shape[1] == len(thresholds), "one column a threshold"
    assert np.isfinite(losses).all(), "a missing or non-finite loss reached the statistics"
    assert losses.min() >= 0.0, "losses are in [0, 1]"
    assert losses.max() <= 1.0, "losses are in [0, 1]"
    tested: list[Tested] = []
    certified = True
    for threshold, risk in zip(thresholds, losses.mean(axis=0), strict=True):
        p_value = hoeffding_bentkus(float(risk), len(losses), delta)
        certified = certified and p_value <= 1.0 - confidence
        tested.append(Tested(float(threshold), float(risk), p_value, certified))
    return tested


def prompts_needed(risk: float, delta: float, confidence: float) -> int | None:
    """How many prompts certify a threshold whose measured mean loss stays `risk`; None if no number does.

    By Hoeffding's part of the p-value: ln(1 / (1 - confidence)) / h(risk, delta). Bentkus's may need fewer.
    """
    if risk >= delta:
        return None
    return math.ceil(math.log(1.0 / (1.0 - confidence)) / relative_entropy(risk, delta))
