"""What holds for every episode, whatever its scores: found by hypothesis, or not found to be false.

The episodes go through the ledger, as in training. The discounted identity is Ng, Harada and Russell's: with
F_t = gamma * Phi(s_{t+1}) - Phi(s_t), sum_{k<t} gamma^k F_k = gamma^t Phi(s_t) - Phi(s_0), and Phi = 0 after
the end. Without the discount's powers it does not hold, unless gamma is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.ledger import RewardLedger, Target
from rewards_service.arithmetic import (
    PROFILES,
    DualVariable,
    Ending,
    RewardConfig,
    final_reward,
    potential,
    required_outputs,
    utility,
)
from rewards_service.reward_config import Profile
from rewards_service.scoring import ScoringError

Row = dict[str, Any]
quick = settings(max_examples=60, deadline=None, database=None)
EVERY_PROFILE: tuple[Profile, ...] = get_args(Profile)
SCALARS = ("clip_score", "aesthetic", "image_reward")
LARGEST = float(np.finfo(np.float32).max)


@st.composite
def rows(draw: st.DrawFn, bound: float | None = 100.0) -> Row:
    """An image's scores; `bound` None is whatever float32 can hold."""
    lowest = None if bound is None else -bound
    finite = st.floats(lowest, bound, width=32, allow_nan=False, allow_infinity=False)
    if bound is None:
        finite |= st.sampled_from([-LARGEST, LARGEST])
    angle = draw(st.floats(0.0, 6.3))
    scores: Row = {name: np.float32(draw(finite)) for name in SCALARS}
    return scores | {"dino": np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)}


#: Previews of an episode and the returned image, each with whether it was scored and what led to it cost.
states = st.lists(st.tuples(rows(), st.booleans(), st.sampled_from([0.0, 0.3, 1.0, 3.0])), min_size=2)
gammas = st.one_of(st.just(1.0), st.floats(0.5, 1.0))


def run(
    previews: Sequence[tuple[Row, bool, float]], config: RewardConfig, reference: Row, sigma: float = 1.0
) -> RewardLedger:
    """The ledger of an episode that decides in every state but the last, which is the returned image."""
    ledger = RewardLedger(config, Target(reference, sigma, reference))
    spent = 0.0
    for index, (scores, scored, cost) in enumerate(previews[:-1]):
        spent += cost
        seen = scores if scored or index == 0 else None
        ledger.reach(cost=spent, nfe=int(spent), attempt=0, scores=seen)
        ledger.decide()
    final, _, cost = previews[-1]
    spent += cost
    ledger.finish(cost=spent, nfe=int(spent), num_steps=10, scores=final)
    return ledger


def discounted(values: Sequence[float], gamma: float) -> float:
    return math.fsum(gamma**t * value for t, value in enumerate(values))


def parts(ledger: RewardLedger, name: str) -> list[float]:
    return [getattr(each, name) for each in ledger.parts]


@quick
@given(states, rows(), gammas)
def test_shaping_telescopes_to_the_end_points(
    previews: list[tuple[Row, bool, float]], reference: Row, gamma: float
) -> None:
    config = RewardConfig(gamma_d=gamma)
    shaping = parts(run(previews, config, reference), "quality")
    start = potential(previews[0][0], config, reference)
    scored = [scores for index, (scores, seen, _) in enumerate(previews[:-1]) if seen or index == 0]
    tolerance = 1e-9 * (1 + max(abs(potential(each, config, reference)) for each in scored))
    assert discounted(shaping, gamma) == pytest.approx(-start, abs=tolerance * len(shaping))
    last = scored[0]
    for t, (scores, seen, _) in enumerate(previews[:-1]):
        last = scores if seen else last
        expected = gamma**t * potential(last, config, reference) - start
        assert discounted(shaping[:t], gamma) == pytest.approx(expected, abs=tolerance * len(shaping))


@quick
@given(rows(), rows(), gammas, st.integers(1, 30), st.lists(st.booleans(), min_size=30, max_size=30))
def test_standing_still_never_pays(
    place: Row, reference: Row, gamma: float, steps: int, scored: list[bool]
) -> None:
    """Whatever the sign of its potential, an unchanged preview earns no more than stopping at once."""
    for profile in PROFILES:
        config = RewardConfig(profile=profile, gamma_d=gamma, alpha=RewardConfig().alpha)  # type: ignore[arg-type]
        at_once = run([(place, True, 1.0), (place, True, 0.0)], config, reference)
        waiting = [(place, seen, 1.0) for seen in (True, *scored[:steps])]
        stood = run([*waiting, (place, True, 0.0)], config, reference)
        gained = [
            discounted([each.quality + each.stability for each in ledger.parts], gamma)
            for ledger in (at_once, stood)
        ]
        tolerance = 1e-9 * (1 + abs(potential(place, config, reference)))
        assert gained[1] <= gained[0] + tolerance
        if gamma == 1.0:
            assert all(each.quality + each.stability <= 0.0 for each in stood.parts[:-1])
        paid = discounted(parts(stood, "efficiency"), gamma)
        assert paid < 0.0 if PROFILES[profile].efficiency else paid == 0.0


@quick
@given(states, rows(), st.floats(0.01, 100.0))
def test_a_common_factor_of_the_weights_is_a_factor_of_their_parts(
    previews: list[tuple[Row, bool, float]], reference: Row, factor: float
) -> None:
    """alpha, c_nfe and terminal_weight scale their parts; beta, weights of a mean, and the seeds nothing."""
    for profile in EVERY_PROFILE:
        config = RewardConfig(profile=profile)
        larger = replace(
            config,
            alpha={name: factor * weight for name, weight in config.alpha.items()},
            beta={name: factor * weight for name, weight in config.beta.items()},
            c_nfe=factor * config.c_nfe,
            terminal_weight=factor * config.terminal_weight,
        )
        expected = 1.0 if profile.startswith("seed") else factor
        for one, other in zip(
            run(previews, config, reference).parts, run(previews, larger, reference).parts, strict=True
        ):
            assert other == pytest.approx(
                tuple(expected * value for value in one), rel=1e-6, abs=1e-6 * factor
            )


@quick
@given(
    st.lists(st.tuples(st.lists(rows(), min_size=1, max_size=4), st.floats(1.0, 60.0)), min_size=2),
    st.floats(0.01, 100.0),
)
def test_no_weights_change_which_policy_the_held_out_utility_selects(
    policies: list[tuple[list[Row], float]], factor: float
) -> None:
    """Returns grow with a trial's weights, so that comparing them would select the largest weights."""
    chosen, best_returns = [], []
    for weight in (1.0, factor):
        config = RewardConfig(profile="balanced", terminal_weight=weight, c_nfe=0.01 * weight, alpha={})
        utilities, returns = [], []
        for finals, cost in policies:
            ledgers = [run([(row, True, 0.0), (row, True, cost)], config, finals[0]) for row in finals]
            judged = [float(row["image_reward"]) for row in finals]
            utilities.append(utility(float(np.mean(judged)), cost))
            returns.append(float(np.mean([sum(ledger.rewards) for ledger in ledgers])))
        chosen.append(int(np.argmax(utilities)))
        best_returns.append(max(returns))
    assert chosen[0] == chosen[1]
    assert best_returns[1] == pytest.approx(factor * best_returns[0], rel=1e-6, abs=1e-9 * factor)


@quick
@given(
    rows(None),
    rows(None),
    st.one_of(st.none(), rows(None)),
    st.floats(1e-6, 1e6),
    st.floats(0.0, 1.0),
    st.sampled_from([0.0, 1.0, 1e6]),
)
def test_every_profile_is_finite_on_everything_finite(
    before: Row, after: Row, reference: Row | None, sigma: float, entropy: float, cost: float
) -> None:
    """The largest float32 there is, references that are the same image, an enormous cost: still a number."""
    measured = before if reference is None else reference
    for profile in EVERY_PROFILE:
        config = RewardConfig(profile=profile, terminal_weight=2.0, terminal_range=3.0)
        ledger = RewardLedger(config, Target(measured, sigma, measured))
        ledger.reach(cost=0.0, nfe=0, attempt=0, scores=before)
        ledger.decide(entropy)
        ledger.reach(cost=cost, nfe=int(cost), attempt=0, scores=after)
        ledger.decide()
        ledger.finish(cost=cost, nfe=int(cost), num_steps=10, scores=after)
        assert all(math.isfinite(value) for each in ledger.parts for value in each)
        if profile not in ("raw", "seed_v1", "seed_v2"):
            assert abs(ledger.parts[-1].terminal) <= 2.0 * 3.0


@quick
@given(
    rows(),
    st.sampled_from(EVERY_PROFILE),
    st.sampled_from((*SCALARS, "dino")),
    st.sampled_from([math.nan, math.inf, -math.inf, None]),
    st.integers(0, 2),
)
def test_a_score_that_is_missing_or_no_number_is_refused(
    row: Row, profile: Profile, output: str, value: float | None, where: int
) -> None:
    """In the first preview, the second, or the returned image, by the prompt and the name of the score."""
    config = RewardConfig(profile=profile)
    needed = output in required_outputs(config) and (output != "dino" or where < 2)
    bad = {name: scores for name, scores in row.items() if name != output}
    if value is not None:
        bad[output] = np.array([value, 0.0]) if output == "dino" else np.float32(value)
    previews = [(bad if index == where else row, True, 1.0) for index in range(3)]
    ledger = RewardLedger(config, Target(row, 1.0, row), prompt="a dog")

    def episode() -> None:
        for index, (scores, _, cost) in enumerate(previews[:-1]):
            ledger.reach(cost=index * cost, nfe=index, attempt=0, scores=scores)
            ledger.decide()
        ledger.finish(cost=2.0, nfe=2, num_steps=10, scores=previews[-1][0])

    if needed:
        with pytest.raises(ScoringError, match=rf"prompt 'a dog', decision \d: score '{output}' is"):
            episode()
    else:
        episode()


@pytest.mark.parametrize("profile", EVERY_PROFILE)
@pytest.mark.parametrize("output", SCALARS)
def test_a_reference_without_a_score_is_refused(profile: Profile, output: str) -> None:
    scores = dict.fromkeys(SCALARS, 0.5)
    lacking = {name: value for name, value in scores.items() if name != output}
    config = RewardConfig(profile=profile)
    if profile == "seed_v1":  # which compares with nothing
        assert final_reward(Ending(scores, lacking, 5, 10, scores), config, 1.0) > 0
        return
    with pytest.raises(ScoringError, match=f"score '{output}' is missing; there are: "):
        final_reward(Ending(scores, lacking, 5, 10, scores), config, 1.0)


@quick
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50),
    st.floats(-100.0, 100.0).filter(lambda target: abs(target) > 1e-3),
    st.floats(0.0, 5.0),
)
def test_the_price_stays_in_bounds_and_first_moves_with_the_excess(
    means: list[float], target: float, rate: float
) -> None:
    """Above its target a mean leaves room to save and the price rises, below it falls."""
    price = DualVariable(0.01, target, rate)
    for number, mean in enumerate(means):
        old = price.price
        new = price.update(mean)
        assert 1e-5 * (1 - 1e-9) <= new <= 1.0
        if number == 0:
            assert (new - old) * (mean - target) >= 0.0
        assert new == price.price


@quick
@given(st.floats(0.1, 60.0), st.floats(0.1, 60.0), st.floats(1e-4, 0.9))
def test_a_larger_mean_never_gives_a_lower_price(one: float, other: float, start: float) -> None:
    low, high = sorted((one, other))
    assert DualVariable(start, 20.0).update(low) <= DualVariable(start, 20.0).update(high)
