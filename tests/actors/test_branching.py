"""Branch comparisons: the pair's gradient against an exact one, and how the collector forks."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from actors import trajectory_store
from actors.branching import compare, discounted
from actors.collector import Collector
from actors.contracts import Denoised, EpisodeRequest
from actors.engine import Engine
from actors.ledger import Target
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.trajectory import TrainingRequest, Trajectory
from tests.actors.test_collector import CONFIG, collector, only_image_reward, requests, uniform
from tests.learner.toy import ToyBackbone, make_client

GAMMA = 0.9


def side(action: int, log_prob: float, rewards: list[float], at: int, is_twin: bool) -> Trajectory:
    request = TrainingRequest(EpisodeRequest("a", 1), (1,), Target({}))
    trajectory = Trajectory(request, forked_at=at, is_twin=is_twin)
    trajectory.actions = [0] * at + [action]
    trajectory.log_probs = [-1.0] * at + [log_prob]
    trajectory.rewards = rewards
    return trajectory


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("actions", [2, 3, 5])
def test_a_pair_gives_the_policy_gradient_in_expectation(seed: int, actions: int) -> None:
    """Summed over all pairs that can be drawn: d/dlogits of sum_a pi(a) R(a), and later decisions once."""
    generator = np.random.default_rng(seed)
    logits_A = 2.0 * generator.normal(size=actions)
    policy_A = np.exp(logits_A) / np.exp(logits_A).sum()
    returns_A = generator.normal(size=actions)
    exact_A = policy_A * (returns_A - policy_A @ returns_A)
    found_A, later_A = np.zeros(actions), np.zeros(actions)
    for a, b in permutations(range(actions), 2):
        chance = policy_A[a] * policy_A[b] / (1.0 - policy_A[a])
        trunk = side(a, np.log(policy_A[a]), [0.0, returns_A[a]], at=1, is_twin=False)
        twin = side(b, np.log(policy_A[b]), [0.0, returns_A[b]], at=1, is_twin=True)
        for taken, comparison in zip((a, b), compare(trunk, twin, GAMMA), strict=True):
            score_A = np.eye(actions)[taken] - policy_A
            found_A += chance * comparison.share * comparison.gain * score_A
            later_A[taken] += chance * comparison.weight
    np.testing.assert_allclose(found_A, exact_A, atol=1e-12)
    np.testing.assert_allclose(later_A, policy_A, atol=1e-12)


def test_the_gain_is_of_what_follows_the_fork() -> None:
    trunk = side(0, np.log(0.5), [5.0, 1.0, 2.0], at=1, is_twin=False)
    twin = side(1, np.log(0.5), [5.0, 4.0], at=1, is_twin=True)
    ours, theirs = compare(trunk, twin, GAMMA)
    assert ours.gain == pytest.approx(1.0 + 0.9 * 2.0 - 4.0)
    assert theirs.gain == -ours.gain
    assert (ours.weight, theirs.weight) == (0.5, 0.5)
    assert discounted([1.0, 2.0, 3.0], 0.5) == 1.0 + 1.0 + 0.75


def test_a_sure_policy_has_little_to_learn_from_a_fork() -> None:
    trunk = side(0, -1e-12, [1.0], at=0, is_twin=False)
    twin = side(1, np.log(1e-12), [-1.0], at=0, is_twin=True)
    ours, theirs = compare(trunk, twin, GAMMA)
    assert abs(ours.share * ours.gain) < 1e-11
    assert ours.weight == pytest.approx(1.0)
    assert theirs.weight < 1e-11


def gather(slots: int, groups: int, fork_at: int | None) -> list[Trajectory]:
    asked = [TrainingRequest(each.request, each.stream, each.target, fork_at) for each in requests(range(12))]
    return collector(slots=slots, groups=groups).collect(asked, uniform, only_image_reward())


def test_a_twin_shares_what_was_before_the_fork_and_differs_there() -> None:
    gathered = gather(4, 2, fork_at=1)
    plain = {trajectory.training.request: trajectory for trajectory in gather(4, 2, fork_at=None)}
    twins = [place for place, trajectory in enumerate(gathered) if trajectory.is_twin]
    assert len(gathered) == 12 + len(twins)
    assert len(twins) >= 6
    for place in twins:
        trunk, twin = gathered[place - 1], gathered[place]
        assert not trunk.is_twin
        assert trunk.training is twin.training
        assert trunk.actions[:1] == twin.actions[:1]
        assert trunk.rewards[:1] == twin.rewards[:1]
        np.testing.assert_array_equal(trunk.observations[1], twin.observations[1])
        np.testing.assert_array_equal(trunk.logits[1], twin.logits[1])
        assert trunk.actions[1] != twin.actions[1]
        assert trajectory_store.episode_id(twin) == f"{trajectory_store.episode_id(trunk)}-twin"
    for trajectory in gathered:
        assert trajectory.result is not None
        assert len(trajectory.rewards) == len(trajectory.actions) == len(trajectory.result.decisions)
        if not trajectory.is_twin:
            assert trajectory.actions == plain[trajectory.training.request].actions, (
                "a fork changed its trunk"
            )


def test_forks_do_not_depend_on_slots_and_groups() -> None:
    one, other = gather(3, 1, fork_at=0), gather(8, 2, fork_at=0)
    assert [(each.actions, each.is_twin) for each in one] == [(each.actions, each.is_twin) for each in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine.rewards == pytest.approx(theirs.rewards, abs=1e-6)


def test_twins_never_denoise_beyond_the_slots() -> None:
    class Counting(ToyBackbone):
        most = 0

        def denoise(self, latents_BCHW: torch.Tensor, *args: Any, **kwargs: Any) -> Denoised:
            self.most = max(self.most, len(latents_BCHW))
            return super().denoise(latents_BCHW, *args, **kwargs)

    backbone = Counting()
    engine = Engine(backbone, CONFIG)
    observer = Observer(ObservationConfig(), ObservationSizes(2, 3), engine.action_names)
    asked = [TrainingRequest(each.request, each.stream, each.target, 0) for each in requests(range(16))]
    Collector(engine, observer, make_client(), slots=4, groups=2).collect(asked, uniform, only_image_reward())
    assert backbone.most == 2
