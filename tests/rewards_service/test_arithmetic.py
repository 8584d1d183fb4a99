"""The reward against closed forms and against examples that were worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rewards_service.arithmetic import (
    PROFILES,
    Components,
    Ending,
    RewardConfig,
    Step,
    efficiency,
    final_reward,
    potential,
    quality,
    required_outputs,
    shaping,
    stability,
    step_reward,
    terminal,
    utility,
)

Row = dict[str, Any]


def row(clip: float, aesthetic: float, image_reward: float, angle: float = 0.0) -> Row:
    dino = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
    return {"clip_score": clip, "aesthetic": aesthetic, "image_reward": image_reward, "dino": dino}


def random_rows(count: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [row(rng.normal(0, 0.3), rng.normal(0, 3), rng.normal(0, 2), rng.normal()) for _ in range(count)]


def returns(rows: list[Row | None], config: RewardConfig, reference: Row | None = None) -> float:
    """Discounted R_quality of an episode through these states, stopped in the last."""
    total, before = 0.0, rows[0]
    assert before is not None
    for index in range(len(rows)):
        ends = index == len(rows) - 1
        after = None if ends else rows[index + 1]
        reward = step_reward(Step(before, after, cost=1.0, ends=ends), config, reference)
        total += config.gamma_d**index * (reward.quality + reward.stability)
        before = after or before
    return total


# -- quality: shaping and stability ------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.9, 0.99, 1.0])
@pytest.mark.parametrize("centred", [False, True])
def test_shaping_telescopes_whatever_lies_between(gamma: float, centred: bool) -> None:
    config = RewardConfig(alpha={"clip": 1.0, "aesthetic": 0.5, "image_reward": 0.8}, gamma_d=gamma)
    rows = random_rows(12)
    reference = random_rows(1, seed=9)[0] if centred else None
    expected = -potential(rows[0], config, reference)
    assert returns([*rows], config, reference) == pytest.approx(expected)
    assert returns([rows[0], *rows[7:]], config, reference) == pytest.approx(expected)
    unscored = [each if index % 3 == 0 else None for index, each in enumerate(rows)]
    assert returns([*unscored], config, reference) == pytest.approx(expected)


def test_potential_is_the_weighted_scaled_sum() -> None:
    config = RewardConfig()
    assert potential(row(0.25, 6.0, 0.5), config) == pytest.approx(5 + 0.5 * 20 + 0.8 * 2.5)
    assert potential(row(0.25, 6.0, 0.5), config, row(0.2, 5.7, 0.7)) == pytest.approx(1 + 0.5 - 0.8)
    only = RewardConfig(alpha={"image_reward": 2.0})
    assert potential({"image_reward": 0.3}, only) == pytest.approx(3.0)
    assert shaping(2.0, 3.0, 0.9) == pytest.approx(0.7)


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize("seed", range(5))
def test_standing_still_never_pays(profile: Any, seed: int) -> None:
    """Whatever the sign of the potential, more steps in one place return no more than stopping there."""
    config = RewardConfig(profile=profile)
    (place,) = random_rows(1, seed)
    stop_now = returns([place], config)
    for steps in (1, 5, 30):
        assert returns([place] * (steps + 1), config) <= stop_now + 1e-6
    cost = step_reward(Step(place, place, cost=1.0), config).efficiency
    assert cost < 0 or PROFILES[profile].efficiency == 0


def test_stability_is_never_positive_and_zero_only_for_the_same_picture() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        a, b = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 8)))
        assert stability(a, b) == pytest.approx(-0.5 * np.sum((a - b) ** 2))
        # One bit too long in float32, a unit vector still gains nothing.
        assert stability(a * np.float32(1.000001), a) == 0.0


def test_stability_counts_within_an_attempt_only() -> None:
    config = RewardConfig(alpha={"stability": 0.2})
    step = Step(row(0, 0, 0, 0.0), row(0, 0, 0, np.pi / 3), cost=1.0)
    assert step_reward(step, config).stability == pytest.approx(0.2 * (0.5 - 1))
    assert step_reward(replace(step, same_attempt=False), config).stability == 0
    assert step_reward(replace(step, ends=True), config).stability == 0


# -- terminal and quality ----------------------------------------------------------------------------


def test_terminal_is_bounded_and_linear_between() -> None:
    assert terminal(1.3, 1.0, 0.5) == pytest.approx(0.6)
    assert terminal(0.9, 1.0, 0.5) == pytest.approx(-0.2)
    assert terminal(9.0, 1.0, 0.5) == 1.0
    assert terminal(-9.0, 1.0, 0.5) == -1.0
    assert terminal(-9.0, 1.0, 0.5, limit=3.0) == -3.0
    assert terminal(2.0, 1.0, 0.5, limit=3.0) == pytest.approx(2.0)
    with pytest.raises(AssertionError, match="sigma is 0"):
        terminal(1.0, 1.0, 0.0)


def test_final_reward_is_at_most_its_weight_and_zero_for_the_reference() -> None:
    config = RewardConfig(terminal_weight=3.0)
    final, reference = random_rows(2)
    assert final_reward(Ending(reference, reference, 10, 20), config, 0.1) == 0.0
    both = [
        final_reward(Ending(*pair, 10, 20), config, 1e-6) for pair in ((final, reference), (reference, final))
    ]
    assert sorted(both) == [-3.0, 3.0]


def test_quality_is_a_mean_that_no_common_factor_moves() -> None:
    image = row(0.25, 6.0, 0.5)
    config = RewardConfig()
    assert quality(image, config) == pytest.approx((2 * 5 + 1 * 20 + 1.5 * 2.5) / 4.5)
    four_times = replace(config, beta={name: 4 * weight for name, weight in config.beta.items()})
    assert quality(image, four_times) == pytest.approx(quality(image, config))
    assert quality({"image_reward": 0.3}, RewardConfig(beta={"image_reward": 7.0})) == pytest.approx(1.5)


def test_raw_profile_uses_neither_scales_nor_clipping() -> None:
    config = RewardConfig(profile="raw")
    final, reference = row(0.3, 6.0, 0.5), row(0.2, 1.0, 0.3)
    assert potential(final, config) == pytest.approx(0.3 + 3.0 + 0.4)
    expected = (2 * 0.1 + 1 * 5.0 + 1.5 * 0.2) / 4.5
    assert final_reward(Ending(final, reference, 10, 20), config, 0.01) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("profile", "factors"),
    [
        ("quality", (1, 0.5, 1)),
        ("efficiency", (1, 2, 1)),
        ("terminal_only", (0, 0, 1)),
        ("no_quality", (0, 1, 1)),
        ("no_efficiency", (1, 0, 1)),
    ],
)
def test_profiles_weigh_the_balanced_components(profile: Any, factors: tuple[float, float, float]) -> None:
    before, after, reference = random_rows(3)
    step, ending = Step(before, after, cost=3.0), Ending(after, reference, 10, 20)
    balanced, config = RewardConfig(), RewardConfig(profile=profile)
    full, part = step_reward(step, balanced), step_reward(step, config)
    assert part == pytest.approx(
        (factors[0] * full.quality, factors[0] * full.stability, factors[1] * full.efficiency, 0)
    )
    assert final_reward(ending, config, 5.0) == pytest.approx(
        factors[2] * final_reward(ending, balanced, 5.0)
    )


# -- the seeds' formulas -----------------------------------------------------------------------------


def test_seed_v1_by_hand() -> None:
    config = RewardConfig(profile="seed_v1", c_nfe=5.0, alpha={}, beta={"clip": 9.0})
    step = Step(row(0.20, 5.0, 0.1, 0.0), row(0.25, 5.6, 0.3, np.pi / 3), cost=3.0, attention_entropy=1.0)
    # 1.0 * .05/.05 + 0.5 * .6/.3 + 0.2 * cos(60 degrees) + 0.8 * .2/.2, and a refinement of 1 + 2 NFE.
    assert step_reward(step, config) == pytest.approx(Components(1 + 1 + 0.8, 0.1, -0.03))
    assert step_reward(replace(step, cost=0.0, ends=True), config) == pytest.approx(Components(0, 0, -0.01))
    ending = Ending(row(0.3, 6.0, 0.5), row(0, 0, 0), nfe=20, num_steps=50)
    assert final_reward(ending, config, 1.0) == pytest.approx(2 * 0.3 + 1 * 6.0 + 1.5 * 0.5)


def test_seed_v1_pays_for_standing_still() -> None:
    """The collapse that potentials prevent: similarity to itself earns more than an NFE costs."""
    place = row(0.3, 6.0, 0.5)
    assert sum(step_reward(Step(place, place, cost=1.0), RewardConfig(profile="seed_v1"))) > 0
    assert sum(step_reward(Step(place, place, cost=1.0), RewardConfig(), reference=place)) < 0


def test_seed_v2_by_hand() -> None:
    config = RewardConfig(profile="seed_v2")
    step = Step(row(0.20, 5.0, 0.1), row(0.25, 5.6, 0.3), cost=3.0, attention_entropy=0.5)
    # 0.5 * 1 + 0.3 * 2 + 0 + 0.4 * 1, bonus 0.2 * 0.5.
    assert step_reward(step, config) == pytest.approx(Components(0.5 + 0.6 + 0.4 + 0.1, 0, -0.06))
    ending = Ending(
        final=row(0.28, 5.5, 0.2),
        reference=row(0.30, 5.5, 0.1),
        nfe=20,
        num_steps=50,
        short_reference=row(0.26, 5.0, 0.3),
    )
    # clip half way, aesthetic all the way, ImageReward's references the wrong way round; 30 of 50 saved.
    expected = (1.0 * 0.5 + 0.4 * 1.0) * (1 + 1.5 * 30 / 50)
    assert final_reward(ending, config, 1.0) == pytest.approx(expected)
    with pytest.raises(ValueError, match="'seed_v2' without the scores of DDIM-20"):
        final_reward(replace(ending, short_reference=None), config, 1.0)


# -- price -------------------------------------------------------------------------------------------


def test_efficiency_and_utility_are_linear_in_cost() -> None:
    assert efficiency(3.3, 0.01) == pytest.approx(-0.033)
    assert utility(0.7, 20.0, price=0.01) == pytest.approx(0.5)
    assert utility(0.7, 30.0) < utility(0.7, 20.0) < utility(0.8, 20.0)


# -- configuration -----------------------------------------------------------------------------------


def test_only_what_a_reward_needs_is_asked_for() -> None:
    assert required_outputs(RewardConfig()) == ("clip_score", "aesthetic", "image_reward", "dino")
    lean = RewardConfig(alpha={"image_reward": 1.0, "stability": 0.0}, beta={"image_reward": 1.0})
    assert required_outputs(lean) == ("image_reward",)
    assert "dino" in required_outputs(replace(lean, profile="seed_v1"))
    assert "dino" not in required_outputs(RewardConfig(profile="seed_v2"))
    judged = replace(lean, beta={"image_reward_now": 1.0}, profile="seed_v2")
    assert set(required_outputs(judged)) == {"clip_score", "aesthetic", "image_reward", "image_reward_now"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "greedy"}, "profile: 'greedy'; accepted: balanced, quality"),
        ({"alpha": {"sharpness": 1.0}}, "alpha: unknown metric 'sharpness'; accepted: clip, aesthetic"),
        ({"beta": {"stability": 1.0}}, "beta: unknown metric 'stability'"),
        ({"beta": {"clip": 0.0}}, "at least one weight above 0"),
        ({"alpha": {"clip": -1.0}}, r"alpha.clip: -1.0; accepted: 0 or more"),
        ({"scales": {"clip": 0.0}}, r"scales.clip: 0.0; accepted: positive"),
        ({"scales": {"clip": float("nan")}}, r"scales.clip: nan; accepted: positive"),
        ({"scales": {"clip": 1.0}}, "scales: 'aesthetic' is missing"),
        ({"gamma_d": 1.5}, "gamma_d: 1.5; accepted: above 0, at most 1"),
        ({"c_nfe": -0.1}, "c_nfe: -0.1; accepted: 0 or more"),
        ({"score_every": 0}, "score_every: 0; accepted: 1 or more"),
        ({"target_nfe": 0.0}, "target_nfe: 0.0; accepted: above 0, or null"),
        ({"target_nfe": 20.0, "quality_floor": 0.0}, "quality_floor: 0.0; accepted: null"),
        ({"sigma": 0.0}, "sigma: 0.0; accepted: above 0, or null"),
        ({"quality_floor": float("nan")}, "quality_floor: nan; accepted: a number, or null"),
        ({"target_nfe": 9.0, "profile": "no_efficiency"}, "target_nfe: 9.0; accepted: null, as c_nfe is no"),
        ({"quality_floor": 0.0, "profile": "seed_v2"}, "quality_floor: 0.0; accepted: null, as c_nfe is no"),
    ],
)
def test_an_impossible_option_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig(**options)
