"""Risk control: its p-values by other means, and its promise kept in simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.special import rel_entr
from scipy.stats import beta, binomtest

from evaluation.risk_control import (
    certify,
    hoeffding_bentkus,
    prompts_needed,
    relative_entropy,
    upper_bound,
)


def binomial_tail(successes: int, trials: int, share: Fraction) -> float:
    """P(Binomial <= successes), exactly."""
    return float(
        sum(
            math.comb(trials, count) * share**count * (1 - share) ** (trials - count)
            for count in range(successes + 1)
        )
    )


@pytest.mark.parametrize("prompts", [1, 20, 87, 300])
@pytest.mark.parametrize("losses", [Fraction(0), Fraction(1, 3), Fraction(2), Fraction(7, 2), Fraction(40)])
@pytest.mark.parametrize("delta", [Fraction(1, 100), Fraction(1, 20), Fraction(1, 4)])
def test_p_values_are_those_of_the_paper(prompts: int, losses: Fraction, delta: Fraction) -> None:
    """Hoeffding's part by scipy's relative entropy, Bentkus's in exact fractions."""
    risk = min(losses / prompts, Fraction(1))
    clipped = np.array([min(risk, delta), 1 - min(risk, delta)], dtype=np.float64)
    entropy = rel_entr(clipped, np.array([delta, 1 - delta], dtype=np.float64)).sum()
    bentkus = math.e * binomial_tail(math.ceil(prompts * risk), prompts, delta)
    expected = min(1.0, math.exp(-prompts * entropy), bentkus)
    assert hoeffding_bentkus(float(risk), prompts, float(delta)) == pytest.approx(expected, rel=1e-9)


def test_relative_entropy_at_the_ends() -> None:
    assert relative_entropy(0.0, 0.25) == pytest.approx(-math.log(0.75))
    assert relative_entropy(1.0, 0.25) == pytest.approx(-math.log(0.25))
    assert relative_entropy(0.3, 0.3) == 0.0


@pytest.mark.parametrize("shape", ["coin", "beta"])
def test_the_promise_holds_in_95_of_100_calibrations(shape: str) -> None:
    """Thresholds of known risk, some above delta: how often is one of those certified?

    The losses of one prompt rise with the threshold, as those of earlier and earlier stops do.
    """
    rng = np.random.default_rng(0)
    delta, repetitions, prompts = 0.05, 2000, 400
    risks = np.array([0.0, 0.01, 0.02, 0.03, 0.0501, 0.07, 0.1])
    wrong = chosen_risky = 0
    for _ in range(repetitions):
        luck_P = rng.random(prompts)[:, None]
        if shape == "coin":
            losses_PT = (luck_P < risks).astype(np.float64)
        else:
            losses_PT = np.where(risks > 0, beta.ppf(luck_P, 2 * risks.clip(1e-9), 2 * (1 - risks)), 0.0)
        certified = [one.certified for one in certify(losses_PT, range(len(risks)), delta, 0.95)]
        wrong += any(certified[4:])
        chosen_risky += certified[2]
    assert binomtest(wrong, repetitions, 0.05, alternative="greater").pvalue > 0.001
    assert chosen_risky > 0.8 * repetitions, "what is clearly safe is certified: the test is not vacuous"


def test_nothing_is_certified_after_the_first_that_fails() -> None:
    losses_PT = np.zeros((500, 3))
    losses_PT[:, 1] = 0.2
    assert [one.certified for one in certify(losses_PT, (0.9, 0.8, 0.7), 0.05, 0.95)] == [True, False, False]


@pytest.mark.parametrize(("failures", "prompts"), [(0, 50), (3, 200), (30, 300), (50, 50)])
def test_the_bound_contains_the_exact_one_of_coins(failures: int, prompts: int) -> None:
    """Clopper and Pearson's bound is exact for losses of 0 and 1; ours may not promise more."""
    exact = 1.0 if failures == prompts else float(beta.ppf(0.95, failures + 1, prompts - failures))
    bound = upper_bound(failures / prompts, prompts, 0.95)
    assert exact <= bound + 1e-9
    assert bound <= exact + 0.05
    if bound < 1.0:
        assert hoeffding_bentkus(failures / prompts, prompts, bound) == pytest.approx(0.05, rel=1e-6)


def test_how_many_prompts_it_takes() -> None:
    """Without any loss: as many as make 0.99^n at most 0.05, which is 299."""
    assert prompts_needed(0.0, 0.01, 0.95) == 299 == math.ceil(math.log(0.05) / math.log(0.99))
    needed = prompts_needed(0.004, 0.01, 0.95)
    assert needed is not None
    assert hoeffding_bentkus(0.004, needed, 0.01) <= 0.05
    assert prompts_needed(0.01, 0.01, 0.95) is None
    assert prompts_needed(0.02, 0.01, 0.95) is None


def test_a_loss_that_is_no_loss_is_refused() -> None:
    for bad in (np.nan, -0.1, 1.1):
        with pytest.raises(AssertionError):
            certify(np.full((30, 1), bad), (0.5,), 0.05, 0.95)
