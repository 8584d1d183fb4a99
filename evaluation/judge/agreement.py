"""How sure shares are, and how far two judges agree.

Always true here: pure functions, each the textbook's formula.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from evaluation.metrics.contracts import UnmeasurableError
from evaluation.statistics import Estimate, Floats, Resampling


def wilson(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a binomial share (Wilson, 1927); (0, 1) of no trials."""
    assert 0 <= successes <= trials
    if trials == 0:
        return 0.0, 1.0
    z = float(norm.ppf((1 + confidence) / 2))
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def cohens_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Agreement of two judges beyond chance (Cohen, 1960): 1 always, 0 as chance has it.

    Raises UnmeasurableError where both gave one and the same answer to everything: chance explains all.
    """
    counts_KK, _ = _confusions(first, second)
    kappa = _kappa(counts_KK.sum(0)[None])[0]
    if not np.isfinite(kappa):
        raise UnmeasurableError("both judges gave one answer to everything; kappa is of differing answers")
    return float(kappa)


def agreement(
    first: Sequence[str],
    second: Sequence[str],
    prompts: Sequence[str],
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Cohen's kappa with an interval that resamples prompts, and the p of no agreement beyond chance.

    Resamples in which kappa does not exist are left out; UnmeasurableError if these are more than 5%.
    """
    value = cohens_kappa(first, second)
    counts_NKK, _ = _confusions(first, second)
    names = list(dict.fromkeys(prompts))
    if len(names) < 2:
        raise UnmeasurableError("one prompt; an interval resamples prompts")
    place = {name: index for index, name in enumerate(names)}
    by_prompt = np.zeros((len(names), *counts_NKK.shape[1:]))
    np.add.at(by_prompt, [place[prompt] for prompt in prompts], counts_NKK)
    size = by_prompt.shape[1]
    resampling = Resampling(len(names), resamples, seed)
    means_RC = resampling.means(by_prompt.reshape(len(names), -1))
    replicates_R = _kappa(means_RC.reshape(-1, size, size))
    defined_R = replicates_R[np.isfinite(replicates_R)]
    if len(defined_R) < 0.95 * resamples:
        raise UnmeasurableError("too few answers differ for an interval of kappa")
    return resampling.estimate(value, defined_R)


def _confusions(first: Sequence[str], second: Sequence[str]) -> tuple[Floats, list[str]]:
    """One-hot tables [N, K, K] of pairs of answers, and the K answers."""
    assert len(first) == len(second), "two judges of the same questions"
    if not first:
        raise UnmeasurableError("no question that both judges answered")
    kinds = sorted({*first, *second})
    place = {kind: index for index, kind in enumerate(kinds)}
    counts_NKK = np.zeros((len(first), len(kinds), len(kinds)))
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        counts_NKK[row, place[a], place[b]] = 1
    return counts_NKK, kinds


def _kappa(counts_RKK: Floats) -> Floats:
    total_R = counts_RKK.sum((1, 2))
    observed_R = np.trace(counts_RKK, axis1=1, axis2=2) / total_R
    chance_R = (counts_RKK.sum(1) * counts_RKK.sum(2)).sum(1) / total_R**2
    apart_R = 1 - chance_R
    defined_R = apart_R > 1e-12
    kappa_R: Floats = np.where(defined_R, (observed_R - chance_R) / np.where(defined_R, apart_R, 1.0), np.nan)
    return kappa_R
