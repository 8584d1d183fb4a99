"""The price's controller on policies in closed form: noisy, late, of unlike sensitivity, and out of reach."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from rewards_service.arithmetic import DualVariable, RewardConfig, dual_variable


@dataclass
class Policy:
    """Answers a price with a mean NFE, as a policy that is being trained does: gradually, late and noisily.

    In the long run NFE is 9 * (price / 0.05) ** -slope between its bounds, which it nears by 1 / lag of the
    distance an iteration, by the price of `delay` iterations before. noise: of an iteration's mean, relative.
    """

    slope: float
    lag: float
    delay: int = 1
    noise: float = 0.04
    lowest: float = 4.0
    highest: float = 20.0
    nfe: float = 12.0
    seed: int = 0
    prices: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)

    def iterate(self, price: float) -> float:
        self.prices.append(price)
        seen = self.prices[max(len(self.prices) - 1 - self.delay, 0)]
        answer = float(np.clip(9.0 * (seen / 0.05) ** -self.slope, self.lowest, self.highest))
        self.nfe += (answer - self.nfe) / self.lag
        return self.nfe * (1.0 + self.noise * self.generator.standard_normal())


def steered(price: DualVariable, iterate: Callable[[float], float], iterations: int) -> list[float]:
    """What `iterate` has shown under the prices that follow from it."""
    seen = []
    for _ in range(iterations):
        seen.append(iterate(price.price))
        price.update(seen[-1])
    return seen


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("target", [7.0, 9.0, 14.0])
@pytest.mark.parametrize("start", [0.002, 0.02, 0.3])
@pytest.mark.parametrize("lag", [2.0, 8.0])
@pytest.mark.parametrize("slope", [0.3, 1.0, 2.0])
def test_a_mean_nfe_is_met_within_five_percent(
    slope: float, lag: float, start: float, target: float, seed: int
) -> None:
    price = DualVariable(start, target)
    seen = steered(price, Policy(slope, lag, seed=seed).iterate, 80)
    assert np.mean(seen[-20:]) == pytest.approx(target, rel=0.05)
    assert not price.out_of_reach


def test_without_noise_the_price_is_that_of_the_closed_form() -> None:
    price = DualVariable(0.02, 7.0)
    steered(price, Policy(slope=0.5, lag=6.0, noise=0.0).iterate, 300)
    assert price.price == pytest.approx(0.05 * (9.0 / 7.0) ** 2, rel=1e-3)
    assert price.mean == pytest.approx(7.0, rel=1e-3)


def test_a_policy_that_only_drifts_does_not_swing_around_its_target() -> None:
    """Near the price at which it does not care, NFE falls or rises at a pace that follows the price.

    An integral alone never settles there (two integrators in a row): the proportional part has to damp it.
    """
    generator = np.random.default_rng(0)
    nfe = 13.0

    def iterate(price: float) -> float:
        nonlocal nfe
        nfe -= 9.0 * np.clip(math.log(price / 0.05), -1.0, 1.0) / 8.0
        nfe = float(np.clip(nfe, 3.0, 14.0))
        return nfe * (1.0 + 0.04 * generator.standard_normal())

    seen = steered(DualVariable(0.02, 9.0), iterate, 80)
    assert np.mean(seen[-20:]) == pytest.approx(9.0, rel=0.05)
    assert np.std(seen[-20:]) < 0.1 * 9.0


@pytest.mark.parametrize("drift", [-0.02, 0.02])
@pytest.mark.parametrize("lag", [2.0, 5.0])
@pytest.mark.parametrize("slope", [0.3, 0.5, 1.0])
def test_a_price_that_has_to_go_on_moving_is_kept_up_with(slope: float, lag: float, drift: float) -> None:
    """A policy that gets surer spends less and less at one price: the right one moves by `drift`."""
    policy = Policy(slope, lag, noise=0.05)
    steps = iter(range(120))
    seen = steered(
        DualVariable(0.02, 9.0),
        lambda price: policy.iterate(price * math.exp(drift * max(next(steps) - 30, 0))),
        120,
    )
    assert np.mean(seen[-30:]) == pytest.approx(9.0, rel=0.05)


@pytest.mark.parametrize(("target", "bound"), [(3.0, 4.0), (2.0, 4.0), (23.0, 20.0), (40.0, 20.0)])
@pytest.mark.parametrize("slope", [0.3, 1.0, 2.0])
def test_a_target_out_of_reach_is_said_and_costs_nothing_later(
    slope: float, target: float, bound: float
) -> None:
    policy, price = Policy(slope, lag=5.0), DualVariable(0.02, target)
    seen = steered(price, policy.iterate, 60)
    assert np.mean(seen[-10:]) == pytest.approx(bound, rel=0.05)
    assert price.out_of_reach
    steered(price, policy.iterate, 200)
    assert price.out_of_reach
    assert 1e-5 * (1 - 1e-9) <= price.price <= 1.0
    # What it accumulated meanwhile does not keep it from a wish that can be met.
    price.target = price.unit = 9.0
    seen = steered(price, policy.iterate, 80)
    assert np.mean(seen[-20:]) == pytest.approx(9.0, rel=0.05)
    assert not price.out_of_reach


@pytest.mark.parametrize("floor", [-0.5, -0.1, -0.01])
def test_a_quality_floor_is_kept_at_the_highest_price(floor: float) -> None:
    """Quality falls by 0.3 for a price e times as high, from -0.01 at a price of 0.01."""
    generator = np.random.default_rng(1)
    level = 0.0

    def iterate(price: float) -> float:
        nonlocal level
        level += (min(-0.01 - 0.3 * math.log(price / 0.01), 0.3) - level) / 5.0
        return level + 0.05 * generator.standard_normal()

    price = dual_variable(RewardConfig(c_nfe=0.02, quality_floor=floor))
    assert price is not None
    prices: list[float] = []
    seen = steered(price, lambda now: prices.append(now) or iterate(now), 100)  # type: ignore[func-returns-value]
    assert np.mean(seen[-40:]) == pytest.approx(floor, abs=0.05)
    assert np.log(prices[-40:]).mean() == pytest.approx(math.log(0.01) - (floor + 0.01) / 0.3, abs=0.2)


def test_its_state_is_all_there_is_to_it() -> None:
    """Cut anywhere and read back from JSON, it goes on to the last bit."""
    means = np.random.default_rng(2).normal(9.0, 2.0, 60)
    whole = DualVariable(0.02, 8.0)
    expected = [(whole.update(mean), whole.out_of_reach) for mean in means]
    for cut in (0, 1, 7, 30):
        first = DualVariable(0.02, 8.0)
        for mean in means[:cut]:
            first.update(mean)
        second = DualVariable(0.5, 8.0)
        second.restore(json.loads(json.dumps(first.state())))
        assert [(second.update(mean), second.out_of_reach) for mean in means[cut:]] == expected[cut:]


def test_a_fixed_price_has_no_controller() -> None:
    assert dual_variable(RewardConfig()) is None


def test_a_mean_that_is_not_finite_is_never_taken() -> None:
    with pytest.raises(AssertionError, match="mean is nan"):
        DualVariable(0.02, 9.0).update(float("nan"))
