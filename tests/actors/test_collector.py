"""Gathering episodes: rewards by hand, grouping without influence, what is scored and when."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from actors.collector import Collector, Policy, attention_entropy
from actors.contracts import QUALITY_FEATURES, EpisodeRequest, Images
from actors.engine import Engine, EngineConfig
from actors.ledger import Target
from actors.observations import PROGRESS_FEATURES, ObservationConfig, ObservationSizes, Observer
from actors.trajectory import TrainingRequest, Trajectory
from rewards_service.arithmetic import RewardConfig
from rewards_service.contracts import Scores
from rewards_service.local import Answered, LocalClient
from tests.learner.toy import ToyBackbone, ToyScorer

CONFIG = EngineConfig(
    solver="ddim",
    num_steps=5,
    warmup_steps=1,
    actions=("continue", "stop", "look", "restart"),
    max_nfe=12,
    max_attempts=4,
    look_price=0.25,
)
NAMES = CONFIG.actions


class CountingClient(LocalClient):
    """Remembers how many images each call held, and what of them was asked for."""

    def __init__(self) -> None:
        super().__init__([ToyScorer()])
        self.calls: list[int] = []
        self.asked_for: set[str] = set()

    def submit(
        self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None
    ) -> Answered:
        self.calls.append(len(images))
        self.asked_for |= set(outputs or ())
        return super().submit(images, prompts, outputs)


def collector(
    *,
    slots: int = 4,
    groups: int = 1,
    policy: str = "latent",
    client: LocalClient | None = None,
    actions: Sequence[str] = NAMES,
    **observation: Any,
) -> Collector:
    engine = Engine(ToyBackbone(), dataclasses.replace(CONFIG, actions=tuple(actions)))
    sizes = ObservationSizes(feature_dim=2, text_dim=3, embedding_dim=2)
    options = ObservationConfig(policy=policy, **observation)  # type: ignore[arg-type]
    observer = Observer(options, sizes, engine.action_names)
    return Collector(engine, observer, client or CountingClient(), slots=slots, groups=groups)


def scripted(*actions: str) -> Policy:
    """The same actions for every episode; only for one slot, as it counts its calls."""
    left = list(actions)

    def policy(observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]) -> NDArray[np.float32]:
        assert len(observations_BD) == 1
        logits_BA = np.full(mask_BA.shape, -1e9, np.float32)
        logits_BA[0, NAMES.index(left.pop(0))] = 0.0
        return logits_BA

    return policy


def uniform(_: NDArray[np.float32], mask_BA: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(mask_BA, 0.0, -1e9).astype(np.float32)


def seed_with(*signs: float) -> int:
    """A seed whose first noises (the second one comes by a restart) have these signs."""
    for seed in range(1000):
        generator = torch.Generator().manual_seed(seed)
        drawn = [float(torch.randn(1, 2, 2, generator=generator).mean().sign()) for _ in signs]
        if drawn == list(signs):
            return seed
    raise AssertionError("no such seed")


def requests(seeds: Sequence[int], reference: float = 0.0) -> list[TrainingRequest]:
    scores = {"clip_score": reference, "aesthetic": reference, "image_reward": reference}
    return [
        TrainingRequest(EpisodeRequest(f"prompt {seed}", seed), (7, seed), Target(scores, sigma=0.5))
        for seed in seeds
    ]


def only_image_reward(**options: Any) -> RewardConfig:
    """Potential and quality are the toy's score itself: 0 for a bad image, 1 for a good one."""
    return RewardConfig(
        alpha={"image_reward": 1.0, "stability": 1.0},
        beta={"image_reward": 1.0},
        scales={"clip": 1.0, "aesthetic": 1.0, "image_reward": 1.0},
        **options,
    )


def run_one(
    actions: Sequence[str], signs: Sequence[float], reward: RewardConfig, reference: float
) -> Trajectory:
    asked = requests([seed_with(*signs)], reference)
    (trajectory,) = collector(slots=1).collect(asked, scripted(*actions), reward)
    return trajectory


def test_rewards_of_an_episode_by_hand() -> None:
    """A bad noise, a look, a restart to a good one, two steps; Phi is the score less the reference's.

    Stop pays for a look, as the image kept is as far along as the one it would return.
    """
    gamma, price, reference = 0.9, 0.1, 0.25
    actions = ["continue", "look", "restart", "continue", "continue", "stop"]
    trajectory = run_one(actions, [-1, 1], only_image_reward(c_nfe=price, gamma_d=gamma), reference)
    bad, good = 0 - reference, 1 - reference
    potentials = [bad, bad, bad, good, good, good, 0]  # of each decision's state; 0 after the end
    prices = [1, CONFIG.look_price, 1, 1, 1, CONFIG.look_price]
    expected = [
        gamma * after - before - price * cost
        for before, after, cost in zip(potentials, potentials[1:], prices, strict=False)
    ]
    expected[-1] += 1.0  # (1 - 0.25) / 0.5, clipped
    np.testing.assert_allclose(trajectory.rewards, expected, atol=1e-6)
    for part, values in {
        "quality": [gamma * after - before for before, after in pairwise(potentials)],
        "stability": [0.0] * 6,
        "efficiency": [-price * cost for cost in prices],
        "terminal": [0.0] * 5 + [1.0],
    }.items():
        recorded = [getattr(each, part) for each in trajectory.parts]
        np.testing.assert_allclose(recorded, values, atol=1e-6)
    assert trajectory.quality == pytest.approx(1.0)
    assert trajectory.result is not None
    assert trajectory.result.nfe == 2 + 1 + 1 + 1 + 1
    assert [NAMES[action] for action in trajectory.actions] == actions


def test_the_terminal_part_compares_with_the_reference() -> None:
    reward = only_image_reward(c_nfe=0.0, gamma_d=1.0)
    for sign, reference, expected in [(1, 0.8, 0.4), (-1, 0.3, -0.6), (-1, 0.9, -1.0)]:
        trajectory = run_one(["stop"], [sign], reward, reference)
        potential = (1.0 if sign > 0 else 0.0) - reference
        assert trajectory.rewards == pytest.approx([expected - potential], abs=1e-6)


def test_shaping_telescopes_whatever_is_scored() -> None:
    """Discounted, it sums to what the first state alone fixes, so that it cannot pay for a detour."""
    actions = ["continue", "restart", "continue", "continue", "continue", "stop"]
    for every in (1, 2, 3, 50):
        reward = only_image_reward(c_nfe=0.0, gamma_d=0.9, score_every=every)
        rewards = run_one(actions, [-1, 1], reward, reference=1.0).rewards
        discounted = sum(0.9**t * value for t, value in enumerate(rewards))
        assert discounted == pytest.approx(1.0, abs=1e-6)  # minus the bad start's potential of -1


def test_an_earlier_candidate_is_scored_when_it_is_returned() -> None:
    """Good noise, looked at, given up for a bad one, looked at: the kept good image comes back."""
    reward = only_image_reward(c_nfe=0.0, gamma_d=1.0)
    actions = ["look", "restart", "continue", "look", "stop"]
    trajectory = run_one(actions, [1, -1], reward, reference=0.75)
    assert trajectory.quality == pytest.approx(1.0)
    assert sum(trajectory.rewards) == pytest.approx(0.5 - 0.25)  # terminal, less the first potential


def test_a_kept_image_that_the_last_look_finds_better_is_scored_as_the_result() -> None:
    """As above, but the bad image was not looked at before stop: stop looks, and returns the kept one."""
    reward = only_image_reward(c_nfe=0.0, gamma_d=1.0)
    trajectory = run_one(["look", "restart", "continue", "stop"], [1, -1], reward, reference=0.75)
    assert trajectory.quality == pytest.approx(1.0)
    assert trajectory.result is not None
    assert trajectory.result.looks == 2


def test_looking_different_within_an_attempt_costs_stability() -> None:
    """The toy never changes its image, so a restart is the only change there is, and it is free."""
    reward = only_image_reward(c_nfe=0.0, gamma_d=1.0)
    plain = dataclasses.replace(reward, alpha={"image_reward": 1.0})
    actions = ["restart", "continue", "stop"]
    with_it, without = (run_one(actions, [-1, 1], each, 0.5).rewards for each in (reward, plain))
    assert with_it == pytest.approx(without, abs=1e-6)


def test_a_preview_is_scored_once() -> None:
    client = CountingClient()
    asked = requests([seed_with(1)])
    policy = scripted("look", "stop")
    collector(slots=1, client=client).collect(asked, policy, RewardConfig())
    assert sum(client.calls) == 1


def test_few_previews_are_scored_if_few_are_asked_for() -> None:
    client = CountingClient()
    policy = scripted("continue", "continue", "continue", "stop")
    asked = requests([seed_with(1)])
    collector(slots=1, client=client).collect(asked, policy, RewardConfig(score_every=3))
    assert sum(client.calls) == 2  # the first state and the one three decisions later, which is returned


def test_a_look_shows_the_scores_it_is_configured_for_and_nothing_else_is_computed() -> None:
    """The reward here has CLIP in it: that is scored, and a look still does not show it to the policy."""
    client = CountingClient()
    reward = RewardConfig(alpha={}, beta={"clip": 1.0, "image_reward": 1.0}, profile="no_quality")
    gathering = collector(slots=1, client=client, look_scores=("image_reward",))
    (trajectory,) = gathering.collect(requests([seed_with(1)]), scripted("look", "stop"), reward)
    assert client.asked_for == {"clip_score", "image_reward"}
    quality = gathering.observer.policy_dim - len(PROGRESS_FEATURES) - len(QUALITY_FEATURES)
    seen = dict(zip(QUALITY_FEATURES, trajectory.observations[1][quality:], strict=False))
    assert seen["image_reward"] == 1.0
    assert seen["clip_score"] == 0.0


def test_the_seed_view_scores_and_pays_for_every_decision() -> None:
    client = CountingClient()
    asked = requests([seed_with(1)])
    gathering = collector(slots=1, policy="seed", client=client)
    policy = scripted("continue", "continue", "stop")
    (trajectory,) = gathering.collect(asked, policy, RewardConfig(score_every=9))
    assert sum(client.calls) == 3
    assert trajectory.result is not None
    assert trajectory.result.looks == 3


@pytest.mark.parametrize("view", ["latent", "seed"])
def test_slots_and_groups_do_not_change_any_episode(view: str) -> None:
    asked, actions = requests(range(24)), (*NAMES, "reuse", "guidance-2")
    gathered = [
        collector(slots=slots, groups=groups, policy=view, actions=actions).collect(
            asked, uniform, RewardConfig()
        )
        for slots, groups in [(1, 1), (6, 1), (6, 2), (24, 3)]
    ]
    taken = {action for trajectory in gathered[0] for action in trajectory.actions}
    assert taken >= {actions.index(name) for name in ("continue", "stop", "restart", "reuse", "guidance-2")}
    assert len({len(trajectory.actions) for trajectory in gathered[0]}) > 3
    for others in gathered[1:]:
        for alone, together in zip(gathered[0], others, strict=True):
            assert alone.actions == together.actions
            np.testing.assert_allclose(alone.rewards, together.rewards, atol=1e-6)
            np.testing.assert_allclose(alone.observations, together.observations, atol=1e-5)


def test_an_extrapolated_image_is_scored_itself() -> None:
    """The seed view decides on scores; those of the prediction that a reuse started from are not its own."""
    actions = (*NAMES, "reuse", "guidance-2")
    order = ["continue", "reuse", "guidance-2", "stop"]
    gathering = collector(slots=1, policy="seed", actions=actions)

    def plan(_: NDArray[np.float32], mask_BA: NDArray[np.bool_]) -> NDArray[np.float32]:
        logits_BA = np.full(mask_BA.shape, -1e9, np.float32)
        logits_BA[0, actions.index(order.pop(0))] = 0.0
        return logits_BA

    (trajectory,) = gathering.collect(requests([3]), plan, RewardConfig())
    assert [decision for decision, _ in trajectory.scored] == [0, 1, 2], "guidance leaves the image as it is"
    assert trajectory.result is not None
    assert (trajectory.result.nfe, trajectory.result.looks) == (3, 3)


def test_another_stream_draws_other_actions() -> None:
    (one,) = collector().collect(requests([3]), uniform, RewardConfig())
    other_stream = [dataclasses.replace(requests([3])[0], stream=(8, 3))]
    (other,) = collector().collect(other_stream, uniform, RewardConfig())
    assert one.actions != other.actions


def test_two_groups_send_one_group_while_the_other_is_away() -> None:
    """With two groups a second call is made before the first one's answer is fetched."""
    events: list[str] = []

    class Watched(CountingClient):
        def submit(
            self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None
        ) -> Answered:
            answered = super().submit(images, prompts, outputs)
            events.append("sent")

            class Later:
                def result(self) -> Scores:
                    events.append("fetched")
                    return answered.result()

            return Later()  # type: ignore[return-value]

    gathering = collector(slots=4, groups=2, client=Watched())
    gathering.collect(requests(range(4)), uniform, RewardConfig())
    assert events[:3] == ["sent", "sent", "fetched"]


def test_entropy_and_log_probability_are_those_of_the_legal_actions() -> None:
    (trajectory,) = collector().collect(requests([5]), uniform, RewardConfig())
    legal = [int((logits > -1e8).sum()) for logits in trajectory.logits]
    assert trajectory.entropies == pytest.approx([np.log(count) for count in legal], abs=1e-6)
    assert trajectory.log_probs == pytest.approx([-np.log(count) for count in legal], abs=1e-6)


def test_attention_entropy_is_one_where_attention_is_even_and_zero_without_any() -> None:
    peaked = torch.zeros(4, 4)
    peaked[1, 2] = 0.3
    half = torch.zeros(4, 4)
    half[:2] = 0.1
    values = [attention_entropy(attention) for attention in (torch.full((4, 4), 0.2), half, peaked, None)]
    assert values == pytest.approx([1.0, np.log(8) / np.log(16), 0.0, 0.0], abs=1e-6)


def test_a_region_that_needs_no_attention_is_refined_in_training() -> None:
    gathering = collector(slots=1)
    actions = ("continue", "stop", "refine")
    config = dataclasses.replace(CONFIG, actions=actions, refine_region="random", refine_grid=2)
    gathering.engine = Engine(ToyBackbone(), config)
    gathering.observer = Observer(ObservationConfig("latent"), ObservationSizes(2, 3, 2), actions)
    plan = iter(("refine", "continue", "stop"))

    def policy(observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]) -> NDArray[np.float32]:
        logits_BA = np.full(mask_BA.shape, -1e9, np.float32)
        logits_BA[0, actions.index(next(plan))] = 0.0
        return logits_BA

    (trajectory,) = gathering.collect(requests([5]), policy, RewardConfig())
    assert trajectory.result is not None
    assert [record.action for record in trajectory.result.decisions] == ["refine", "continue", "stop"]
    assert trajectory.result.nfe == 2 + (1 + config.refine_steps) + 1


class TwoJudges(ToyScorer):
    """Also judges the image as it is."""

    outputs = (*ToyScorer.outputs, "image_reward_now")

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        scores = super().score(images, prompts)
        return scores | {"image_reward_now": scores["image_reward"] * np.float32(0.5)}


@pytest.mark.parametrize("profile", ["seed_v1", "seed_v2"])
def test_the_seeds_formulas_run_where_quality_has_a_metric_that_they_do_not_know(profile: Any) -> None:
    """The embedded world's quality is by `image_reward_now`; looks, too, are unknown to the seeds."""
    reward = RewardConfig(profile=profile, beta={"image_reward_now": 1.0})
    scores = {"clip_score": 0.5, "aesthetic": 0.5, "image_reward": 0.5}
    target = Target(scores, short_reference=dict.fromkeys(scores, 0.25))
    asked = [TrainingRequest(EpisodeRequest("a prompt", seed_with(1)), (7,), target)]
    gathering = collector(slots=1, client=LocalClient([TwoJudges()]))
    (trajectory,) = gathering.collect(asked, scripted("look", "continue", "stop"), reward)
    assert trajectory.quality == pytest.approx(0.5 / 0.2)
    price = 0.01 if profile == "seed_v1" else 0.02
    assert [each.efficiency for each in trajectory.parts] == pytest.approx([0.0, -price, -price])


def test_savings_are_counted_against_the_schedule() -> None:
    """The seeds' N_max is the schedule's steps, 5 here, whatever budget an episode has."""
    reward = RewardConfig(profile="seed_v2")
    scores = {"clip_score": 1.0, "aesthetic": 1.0, "image_reward": 1.0}
    target = Target(scores, short_reference=dict.fromkeys(scores, 0.0))
    asked = [TrainingRequest(EpisodeRequest("a prompt", seed_with(1)), (7,), target)]
    (trajectory,) = collector(slots=1).collect(asked, scripted("continue", "stop"), reward)
    assert trajectory.result is not None
    assert trajectory.result.nfe == 3
    assert trajectory.parts[-1].terminal == pytest.approx((1.0 + 0.4 + 0.6) * (1 + 1.5 * (5 - 3) / 5))
