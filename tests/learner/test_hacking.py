"""The reward-hacking test: what it must find, what it must not take for one, how often it is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from learner.hacking import Evaluation, find_hacking, lower_bound
from rewards_service.arithmetic import HELD_OUT_PRICE

PROMPTS = 32
RISING = [(iteration, 0.1 * iteration) for iteration in range(1, 41)]


def evaluations(means: list[float], nfe: list[float] | None = None, noise: float = 0.02) -> list[Evaluation]:
    """One every ten iterations; prompts differ far more (0.3) than one prompt does between two policies."""
    generator = np.random.default_rng(0)
    prompts = generator.normal(0.0, 0.3, PROMPTS)
    costs = nfe or [10.0] * len(means)
    return [
        Evaluation(
            iteration=10 * (index + 1),
            quality=tuple(mean + prompts + generator.normal(0.0, noise, PROMPTS)),
            nfe=(cost,) * PROMPTS,
            cost=(cost,) * PROMPTS,
            seconds=1.0,
        )
        for index, (mean, cost) in enumerate(zip(means, costs, strict=True))
    ]


def test_a_fall_that_is_small_beside_the_spread_of_prompts_is_found() -> None:
    found = find_hacking(evaluations([0.5, 0.6, 0.58, 0.55]), RISING, 0.99)
    assert found is not None
    assert found.since == 20
    assert found.drop == pytest.approx(0.05, abs=0.015)
    assert 0 < found.at_least < found.drop


@pytest.mark.parametrize(
    ("returns", "why"),
    [
        ([(at, -value) for at, value in RISING], "the return falls too: that is no hacking but bad learning"),
        ([(at, 0.0) for at, _ in RISING], "the return stands still"),
        (RISING[:22], "too few iterations since then"),
    ],
)
def test_without_a_rising_return_there_is_none(returns: list[tuple[int, float]], why: str) -> None:
    assert find_hacking(evaluations([0.5, 0.6, 0.58, 0.55]), returns, 0.99) is None, why


def test_quality_given_up_for_compute_is_none_where_the_compute_is_worth_it() -> None:
    drop, saved = 0.02, 8.0
    assert drop < saved * HELD_OUT_PRICE
    traded = evaluations([0.6, 0.6 - drop], [20.0, 20.0 - saved], noise=0.001)
    assert find_hacking(traded, RISING, 0.99) is None
    squandered = evaluations([0.6, 0.6 - drop], [20.0, 20.0], noise=0.001)
    assert find_hacking(squandered, RISING, 0.99) is not None


def test_one_evaluation_shows_nothing() -> None:
    assert find_hacking(evaluations([0.6]), RISING, 0.99) is None


def test_noise_alone_is_seldom_taken_for_hacking() -> None:
    """The best of seven earlier evaluations is best by luck; the test has to know that."""
    generator = np.random.default_rng(1)
    alarms, trials = 0, 1000
    for _ in range(trials):
        noise = generator.normal(0.6, 0.1, (8, PROMPTS))
        same = [
            Evaluation(5 * index + 5, tuple(row), (10.0,) * PROMPTS, (10.0,) * PROMPTS, 1.0)
            for index, row in enumerate(noise)
        ]
        alarms += find_hacking(same, RISING, 0.95) is not None
    # 95% confidence may be wrong in 5% of 1000 trials: more than 70 has a probability below 0.3%.
    assert alarms <= 70


def test_the_bound_is_that_of_the_paired_t_test() -> None:
    generator = np.random.default_rng(2)
    one, other = generator.normal(size=20), generator.normal(size=20)
    paired = stats.ttest_rel(one, other, alternative="greater").confidence_interval(0.98)
    assert lower_bound(one - other, 0.02) == pytest.approx(paired.low)
