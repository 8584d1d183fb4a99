"""Rollouts: continuous batching gives what one episode at a time gives, in the order of the requests."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch

from actors.contracts import EpisodeRequest, EpisodeResult
from actors.engine import Engine, EngineConfig
from actors.errors import UserError
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.policy import PolicyDecider, PolicyNetwork
from actors.rollout import rollout
from tests.actors.fakes import OracleBackbone, Scripted, SeededRandom, brightness_scorer

PROMPTS = ("owl", "fox", "sky")
REQUESTS = [EpisodeRequest(PROMPTS[seed % 3], seed) for seed in range(23)]
SIZES = ObservationSizes(OracleBackbone.feature_dim, OracleBackbone.text_dim, embedding_dim=8)


def make(config: EngineConfig | None = None, view: str = "latent") -> tuple[Engine, Observer]:
    engine = Engine(OracleBackbone(attention_HW=torch.rand(8, 8)), config or EngineConfig())
    return engine, Observer(ObservationConfig(view), SIZES, engine.action_names)  # type: ignore[arg-type]


def assert_same_results(first: list[EpisodeResult], second: list[EpisodeResult]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.request == other.request
        assert one.decisions == other.decisions
        assert (one.nfe, one.network_evals, one.attempts) == (other.nfe, other.network_evals, other.attempts)
        assert (one.looks, one.cost) == (other.looks, other.cost)
        torch.testing.assert_close(one.latents_CHW, other.latents_CHW, atol=1e-4, rtol=0)


EVERYTHING = (
    *EngineConfig().actions,
    "leap-3",
    "reuse",
    "guidance-2",
    "guidance-7.5",
)


@pytest.mark.parametrize("view", ["latent", "seed"])
def test_refilled_slots_change_nothing(view: str) -> None:
    engine, observer = make(EngineConfig(actions=EVERYTHING), view)
    runs = [
        rollout(engine, SeededRandom(), observer, iter(REQUESTS), slots=slots, scorer=brightness_scorer)
        for slots in (1, 7, 50)
    ]
    assert [result.request for result in runs[0]] == REQUESTS
    assert len({result.nfe for result in runs[0]}) > 3  # they really end at different times
    assert_same_results(runs[0], runs[1])
    assert_same_results(runs[0], runs[2])


def test_a_learned_policy_decides_the_same_in_any_number_of_slots() -> None:
    engine, observer = make()
    torch.manual_seed(0)
    network = PolicyNetwork(observer.policy_dim, engine.num_actions, hidden=(16,))
    torch.nn.init.normal_(cast(torch.Tensor, network.layers[-1].weight))
    decider = PolicyDecider(network, observer)
    one, seven = (
        rollout(engine, decider, observer, REQUESTS[:9], slots=slots, scorer=brightness_scorer)
        for slots in (1, 7)
    )
    assert_same_results(one, seven)


def test_slots_are_full_while_requests_wait() -> None:
    engine, observer = make(EngineConfig(warmup_steps=0))
    assert isinstance(engine.backbone, OracleBackbone)
    plans = {seed: ["continue"] * (seed % 5) + ["stop"] for seed in range(12)}
    rollout(
        engine,
        Scripted(engine.action_names, plans),
        observer,
        REQUESTS[:12],
        slots=4,
        scorer=brightness_scorer,
    )
    sizes = [len(call) for call in engine.backbone.calls]
    assert sum(sizes) == sum(1 + seed % 5 for seed in range(12))
    draining = sizes.index(min(sizes))
    assert all(size == 4 for size in sizes[: draining - 2])


def test_finished_episodes_are_reported_at_once_and_previews_are_one_a_decision() -> None:
    engine, observer = make()
    finished: list[EpisodeResult] = []
    results = rollout(
        engine,
        Scripted(engine.action_names, {0: ["look", "continue"], 1: ["stop"]}),
        observer,
        REQUESTS[:2],
        slots=2,
        scorer=brightness_scorer,
        record_previews=True,
        on_finished=finished.append,
    )
    assert [result.request.seed for result in finished] == [1, 0]
    assert [result.request.seed for result in results] == [0, 1]
    for result in results:
        assert len(result.preview_images) == len(result.decisions)
        assert all(image.shape == (8, 8, 3) and image.dtype == np.uint8 for image in result.preview_images)


def test_a_look_is_scored_on_the_preview_of_that_very_episode() -> None:
    engine, observer = make()
    plan = ["look", "continue", "stop"]
    results = rollout(
        engine,
        Scripted(engine.action_names, plan),
        observer,
        REQUESTS[:5],
        slots=3,
        scorer=brightness_scorer,
        record_previews=True,
    )
    for result in results:
        expected = brightness_scorer(result.preview_images[0][None], [result.request.prompt])["image_reward"][
            0
        ]
        assert result.decisions[1].image_reward == pytest.approx(float(expected))
        assert result.looks == 1


def test_the_seed_view_pays_for_a_look_at_every_decision() -> None:
    engine, observer = make(EngineConfig(actions=("continue", "stop", "refine"), look_price=0.5), "seed")
    (result,) = rollout(
        engine, Scripted(engine.action_names), observer, REQUESTS[:1], slots=1, scorer=brightness_scorer
    )
    assert result.looks == len(result.decisions) == 7
    assert result.cost == result.nfe + 0.5 * 7


def test_no_requests_no_results() -> None:
    engine, observer = make()
    decider = Scripted(engine.action_names)
    assert rollout(engine, decider, observer, [], slots=2, scorer=brightness_scorer) == []


def test_impossible_calls_are_user_errors() -> None:
    engine, observer = make()
    decider = Scripted(engine.action_names)
    with pytest.raises(UserError, match="slots is 0; accepted: a whole number from 1"):
        rollout(engine, decider, observer, REQUESTS, slots=0, scorer=brightness_scorer)
    with pytest.raises(UserError, match="scorer is None; accepted: a scorer"):
        rollout(engine, decider, observer, REQUESTS, slots=2, scorer=None)
