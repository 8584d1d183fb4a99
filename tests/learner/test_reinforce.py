"""REINFORCE's baseline and branch comparisons in the learner, by hand; no Ray session."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.evaluation.postprocessing import Postprocessing

from actors.branching import Comparison
from actors.env_runner import COMPARISON, PROMPT
from learner.branches import compared
from learner.reinforce import ReturnsOverPrompt, leave_one_out


def episode(prompt: str, rewards: Sequence[float], side: Comparison | None = None) -> SingleAgentEpisode:
    """With the row at its end that RLlib adds, whose reward is 0."""
    steps = len(rewards) + 1
    made = SingleAgentEpisode(
        observations=[0] * (steps + 1), actions=[0] * steps, rewards=[*rewards, 0.0], len_lookback_buffer=0
    ).to_numpy()
    made.custom_data[PROMPT] = prompt
    if side is not None:
        made.custom_data[COMPARISON] = side
    return made


def advantages(episodes: list[SingleAgentEpisode], gamma: float = 1.0) -> np.ndarray:
    rewards = np.concatenate([each.get_rewards() for each in episodes])
    batch = {DEFAULT_MODULE_ID: {Columns.REWARDS: torch.tensor(rewards, dtype=torch.float32)}}
    done = ReturnsOverPrompt(gamma)(batch=batch, episodes=episodes)
    return done[DEFAULT_MODULE_ID][Postprocessing.ADVANTAGES].numpy()


def test_an_episode_is_compared_with_the_others_of_its_prompt() -> None:
    found = leave_one_out([1.0, 2.0, 6.0, 10.0], ["a", "a", "a", "b"])
    np.testing.assert_allclose(found, [1 - 4, 2 - 3.5, 6 - 1.5, 10 - 3])
    np.testing.assert_allclose(leave_one_out([5.0], ["a"]), [0.0])


@pytest.mark.parametrize("seed", range(3))
def test_the_baseline_leaves_the_gradient_unbiased(seed: int) -> None:
    """Every outcome of two episodes of a two-armed bandit, weighted by its probability."""
    generator = np.random.default_rng(seed)
    logit, rewards_A = generator.normal(), generator.normal(size=2)
    chances_A = np.array([1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(logit))])
    score_A = np.array([chances_A[1], -chances_A[0]])
    found = 0.0
    for first in range(2):
        for second in range(2):
            ours = leave_one_out([rewards_A[first], rewards_A[second]], ["a", "a"])
            found += chances_A[first] * chances_A[second] * (ours @ score_A[[first, second]]) / 2
    exact = chances_A.prod() * (rewards_A[0] - rewards_A[1])
    assert found == pytest.approx(exact, abs=1e-12)


def test_every_decision_has_its_episodes_advantage() -> None:
    episodes = [episode("a", [1.0, 2.0]), episode("a", [0.5]), episode("b", [0.0, 0.0, 4.0])]
    returns = [1 + 0.5 * 2, 0.5, 0.25 * 4]
    expected = leave_one_out(returns, ["a", "a", "b"])
    rows = np.repeat(expected, [3, 2, 4]) / expected.std()
    np.testing.assert_allclose(advantages(episodes, gamma=0.5), rows, rtol=1e-5)


def test_a_twin_changes_nobodys_baseline_and_only_its_pair() -> None:
    sides = (
        Comparison(at=1, gain=3.0, share=0.25, weight=0.6, is_twin=False),
        Comparison(at=1, gain=-3.0, share=0.25, weight=0.4, is_twin=True),
    )
    trunk, twin = episode("a", [1.0, 2.0, 2.0], sides[0]), episode("a", [0.5, 0.5], sides[1])
    others = [episode("a", [2.0]), episode("a", [4.0])]
    found = advantages([trunk, twin, *others])
    alone = leave_one_out([5.0, 2.0, 4.0], ["a"] * 3)
    found *= alone.std()
    # The trunk before its fork, at it, and after; the twin at the fork and after; the others.
    np.testing.assert_allclose(found[:3], [2.0, 0.25 * 3.0, 0.6 * 2.0], rtol=1e-5)
    np.testing.assert_allclose(found[4:6], [0.25 * -3.0, 0.4 * (2.0 - 3.0)], rtol=1e-5)
    np.testing.assert_allclose(found[[7, 9]], alone[1:], rtol=1e-5)


def test_without_forks_advantages_stay() -> None:
    plain = [episode("a", [1.0, 2.0]), episode("b", [3.0])]
    before = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(compared(before, plain, 1.0, 2.0), before)
