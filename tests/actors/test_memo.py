"""A memo saves calls and changes nothing else; what an answer depends on is what it is found by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from actors.collector import Collector
from actors.contracts import EpisodeRequest
from actors.engine import Engine, EngineConfig, Episode
from actors.ledger import Target
from actors.memo import Call, Memo, Scored
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.trajectory import TrainingRequest, Trajectory
from rewards_service.arithmetic import RewardConfig
from tests.actors.fakes import OracleBackbone
from tests.actors.test_collector import CONFIG, CountingClient, requests, uniform
from tests.actors.test_engine import play
from tests.learner.toy import ToyBackbone

PLANS = (["continue"], ["look", "restart", "continue"], ["refine", "leap-2"], ["reuse", "guidance-2"])


class CountingBackbone(ToyBackbone):
    """Counts the rows it denoised."""

    rows = 0

    def denoise(self, latents_BCHW: torch.Tensor, *rest: Any, **options: Any) -> Any:
        self.rows += len(latents_BCHW)
        return super().denoise(latents_BCHW, *rest, **options)


def collect(
    asked: Sequence[TrainingRequest],
    passes: int,
    calls: Memo[Call] | None,
    scores: Memo[Scored] | None,
    client: CountingClient,
    backbone: ToyBackbone,
) -> list[Trajectory]:
    """The same requests again and again, each time with other draws."""
    engine = Engine(backbone, CONFIG, memo=calls)
    observer = Observer(ObservationConfig(), ObservationSizes(2, 3, 2), engine.action_names)
    collector = Collector(engine, observer, client, slots=4, groups=2, memo=scores)
    gathered = []
    for number in range(passes):
        again = [dataclasses.replace(each, stream=(*each.stream, number)) for each in asked]
        gathered += collector.collect(again, uniform, RewardConfig(score_every=1))
    return gathered


def test_trajectories_are_the_same_and_most_of_the_work_is_not_done_again() -> None:
    asked = requests(range(6))
    asked = [
        dataclasses.replace(each, target=Target({**each.target.reference, "dino": 0.0})) for each in asked
    ]
    plain, saving = CountingBackbone(), CountingBackbone()
    all_scored, few_scored = CountingClient(), CountingClient()
    without = collect(asked, 5, None, None, all_scored, plain)
    calls: Memo[Call] = Memo(1.0)
    with_memo = collect(asked, 5, calls, Memo(1.0), few_scored, saving)
    for one, other in zip(without, with_memo, strict=True):
        assert one.actions == other.actions
        assert one.rewards == other.rewards
        np.testing.assert_array_equal(np.stack(one.observations), np.stack(other.observations))
        assert one.result is not None
        assert other.result is not None
        assert torch.equal(one.result.latents_CHW, other.result.latents_CHW)
        assert (one.result.nfe, one.result.cost) == (other.result.nfe, other.result.cost)
    assert sum(trajectory.result.nfe for trajectory in without if trajectory.result) == plain.rows
    assert calls.asked == plain.rows
    assert saving.rows == calls.asked - calls.found < 0.5 * plain.rows
    assert sum(few_scored.calls) < 0.5 * sum(all_scored.calls)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan[0])
def test_every_action_leads_where_it_led(plan: list[str]) -> None:
    names = ("continue", "stop", "look", "restart", "refine", "leap-2", "reuse", "guidance-2")
    config = EngineConfig(solver="dpmpp", num_steps=8, actions=names, max_nfe=20)
    memo: Memo[Call] = Memo(8.0)
    ends: list[Episode] = []
    for engine in (
        Engine(OracleBackbone(), config),
        Engine(OracleBackbone(), config, memo=memo),
        Engine(OracleBackbone(), config, memo=memo),
    ):
        (episode,) = engine.begin([EpisodeRequest("a red fox", 3)])
        ends.append(play(engine, episode, plan))
    plain, first, again = (end.result() for end in ends)
    assert memo.found == memo.asked / 2, "the second time, every call was remembered"
    assert plain.decisions == first.decisions == again.decisions
    assert plain.network_evals == again.network_evals
    assert torch.equal(plain.latents_CHW, first.latents_CHW)
    assert torch.equal(plain.latents_CHW, again.latents_CHW)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "an owl"},
        {"seed": 4},
        {"guidance_scale": 2.0},
        {"solver": "ddim"},
        {"guidance_rule": "none"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_question_is_asked_anew(change: dict[str, Any]) -> None:
    """At the first call, whose latents are the seed's alone."""
    memo: Memo[Call] = Memo(8.0)
    base = EngineConfig(solver="dpmpp", num_steps=6, guidance_scale=4.0, timestep_spacing="trailing")

    def first_call(prompt: str = "a red fox", seed: int = 3, **options: Any) -> bool:
        engine = Engine(OracleBackbone(), dataclasses.replace(base, **options), memo=memo)
        memo.asked = memo.found = 0
        engine.denoise(engine.begin([EpisodeRequest(prompt, seed)]))
        assert memo.asked == 1
        return memo.found == 1

    assert not first_call()
    assert first_call()
    assert first_call(warmup_steps=1), "which decisions follow is not part of the question"
    assert not first_call(**change)


def test_memory_is_bounded_and_what_was_used_last_stays() -> None:
    entries = [Scored({"x": np.full(2**17, number, np.float32)}) for number in range(4)]  # half a MiB each
    memo: Memo[Scored] = Memo(1.0)
    memo.keep([0, 1], entries[:2])
    memo.recall([0])
    memo.keep([2], entries[2:3])
    assert [entry is not None for entry in memo.recall([0, 1, 2])] == [True, False, True]
    memo.keep([3], [Scored({"x": np.zeros(2**19, np.float32)})])
    assert memo.recall([3]) == [None], "larger than all there is"
