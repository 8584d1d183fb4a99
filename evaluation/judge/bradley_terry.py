"""Bradley-Terry strengths of methods from pairwise comparisons, with intervals that know of prompts.

Always true here: strengths are natural logarithms that sum to zero; a chance of winning is the logistic
function of a difference (Bradley and Terry, 1952). A tie is half a win for each. Where the maximum of the
likelihood does not exist (someone never lost to any of the others), that is said and nothing is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.stats import norm

from evaluation.metrics.contracts import UnmeasurableError
from evaluation.statistics import Estimate, Floats

Ints = NDArray[np.int64]

ELO = 400 / math.log(10)
"""Points of Elo's scale a unit of strength."""
Interval = Literal["prompts", "fisher"]
_STEPS = 100


@dataclass(frozen=True)
class Comparison:
    """first against second on one image of a prompt; score is first's: 1 won, 0.5 tied, 0 lost."""

    first: str
    second: str
    score: float
    prompt: str


@dataclass(frozen=True)
class Strengths:
    """Fitted log strengths [K], and their covariance [K, K]."""

    methods: tuple[str, ...]
    values_K: Floats
    covariance_KK: Floats

    def of(self, method: str) -> Estimate:
        """A method's strength against the mean of all, with its 95% Wald interval."""
        contrast_K = np.full(len(self.methods), -1 / len(self.methods))
        contrast_K[self.methods.index(method)] += 1
        return self._estimate(contrast_K)

    def difference(self, first: str, second: str) -> Estimate:
        """How much stronger first is than second: the log odds of its winning."""
        contrast_K = np.zeros(len(self.methods))
        contrast_K[self.methods.index(first)] += 1
        contrast_K[self.methods.index(second)] -= 1
        return self._estimate(contrast_K)

    def _estimate(self, contrast_K: Floats) -> Estimate:
        value = float(contrast_K @ self.values_K)
        error = math.sqrt(max(0.0, float(contrast_K @ self.covariance_KK @ contrast_K)))
        half = float(norm.ppf(0.975)) * error
        p = 1.0 if value == 0 else 2 * float(norm.sf(abs(value) / error)) if error > 0 else 0.0
        return Estimate(value, value - half, value + half, p)


def bradley_terry(comparisons: Sequence[Comparison], interval: Interval = "prompts") -> Strengths:
    """Maximum likelihood strengths of all methods that were compared.

    interval: "fisher" takes every comparison as independent; "prompts" lets those of one prompt depend on
    each other (sandwich covariance, Liang and Zeger, 1986, with the factor P / (P - 1)). Raises
    UnmeasurableError where the likelihood has no maximum (Ford, 1957).
    """
    methods = tuple(dict.fromkeys(name for each in comparisons for name in (each.first, each.second)))
    if len(methods) < 2:
        raise UnmeasurableError("no two methods were compared")
    place = {name: index for index, name in enumerate(methods)}
    first_N: Ints = np.array([place[each.first] for each in comparisons], dtype=np.int64)
    second_N: Ints = np.array([place[each.second] for each in comparisons], dtype=np.int64)
    score_N = np.array([each.score for each in comparisons], dtype=np.float64)
    assert (first_N != second_N).all(), "a method was compared with itself"
    assert ((score_N >= 0) & (score_N <= 1)).all()
    _check_exists(first_N, second_N, score_N, methods)

    values_K = np.zeros(len(methods))
    for _ in range(_STEPS):
        gradient_K, information_KK = _likelihood(values_K, first_N, second_N, score_N)
        step_K = _inverse(information_KK) @ gradient_K
        values_K = values_K + step_K * min(1.0, 2.0 / max(float(np.abs(step_K).max()), 1e-300))
        if np.abs(step_K).max() < 1e-10:
            break
    else:
        raise AssertionError("Newton's method did not converge")
    values_K -= values_K.mean()
    inverse_KK = _inverse(_likelihood(values_K, first_N, second_N, score_N)[1])
    if interval == "fisher":
        return Strengths(methods, values_K, inverse_KK)
    prompts = list(dict.fromkeys(each.prompt for each in comparisons))
    if len(prompts) < 2:
        raise UnmeasurableError("one prompt; an interval needs several")
    index = {prompt: row for row, prompt in enumerate(prompts)}
    residual_N = score_N - _chance(values_K, first_N, second_N)
    scores_PK = np.zeros((len(prompts), len(methods)))
    rows_N = np.array([index[each.prompt] for each in comparisons])
    np.add.at(scores_PK, (rows_N, first_N), residual_N)
    np.add.at(scores_PK, (rows_N, second_N), -residual_N)
    meat_KK = scores_PK.T @ scores_PK * len(prompts) / (len(prompts) - 1)
    return Strengths(methods, values_K, inverse_KK @ meat_KK @ inverse_KK)


def _inverse(information_KK: Floats) -> Floats:
    """Of the information about differences; the sum of all strengths is not identified."""
    return np.asarray(np.linalg.pinv(information_KK, hermitian=True), dtype=np.float64)


def _chance(values_K: Floats, first_N: Ints, second_N: Ints) -> Floats:
    chance_N: Floats = 1 / (1 + np.exp(values_K[second_N] - values_K[first_N]))
    return chance_N


def _likelihood(
    values_K: Floats,
    first_N: Ints,
    second_N: Ints,
    score_N: Floats,
) -> tuple[Floats, Floats]:
    """Gradient [K] and Fisher information [K, K] of the log likelihood."""
    chance_N = _chance(values_K, first_N, second_N)
    gradient_K = np.zeros(len(values_K))
    np.add.at(gradient_K, first_N, score_N - chance_N)
    np.add.at(gradient_K, second_N, chance_N - score_N)
    weight_N = chance_N * (1 - chance_N)
    information_KK = np.zeros((len(values_K), len(values_K)))
    for rows, columns, sign in (
        (first_N, first_N, 1),
        (second_N, second_N, 1),
        (first_N, second_N, -1),
        (second_N, first_N, -1),
    ):
        np.add.at(information_KK, (rows, columns), sign * weight_N)
    return gradient_K, information_KK


def _check_exists(
    first_N: Ints,
    second_N: Ints,
    score_N: Floats,
    methods: Sequence[str],
) -> None:
    """Everybody must have won something, directly or through others, against everybody."""
    won_KK = np.zeros((len(methods), len(methods)))
    np.add.at(won_KK, (first_N, second_N), score_N)
    np.add.at(won_KK, (second_N, first_N), 1 - score_N)
    groups, label_K = connected_components(won_KK > 0, directed=True, connection="strong")
    if groups > 1:
        apart = [name for name, label in zip(methods, label_K, strict=True) if label == label_K[0]]
        raise UnmeasurableError(
            f"{', '.join(apart)} and the others never won against each other in both directions; strengths"
            " would be infinite"
        )
