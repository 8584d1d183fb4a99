"""Which actions are legal when, what a look leaves behind, and which image a stop returns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actors.contracts import QUALITY_FEATURES, EpisodeRequest
from actors.engine import Engine, EngineConfig, Episode
from tests.actors.fakes import OracleBackbone

ALL = EngineConfig().actions


def start(config: EngineConfig | None = None, seed: int = 1) -> tuple[Engine, Episode]:
    """An engine and an episode at its first decision."""
    engine = Engine(OracleBackbone(), config or EngineConfig())
    (episode,) = engine.begin([EpisodeRequest("owl", seed)])
    settle(engine, episode)
    return engine, episode


def settle(engine: Engine, episode: Episode) -> None:
    while episode.state == "denoising":
        engine.denoise([episode])


def take(engine: Engine, episode: Episode, *names: str) -> None:
    for name in names:
        engine.act(episode, engine.action_names.index(name))
        settle(engine, episode)


def look(engine: Engine, episode: Episode, score: float) -> None:
    take(engine, episode, "look")
    engine.receive_look(episode, {"image_reward": np.float32(score)})


def legal(engine: Engine, episode: Episode) -> set[str]:
    return {engine.action_names[index] for index in np.flatnonzero(engine.legal([episode])[0])}


def test_the_first_decision_comes_after_the_warm_up() -> None:
    _, episode = start(EngineConfig(warmup_steps=3))
    assert (episode.step_index, episode.nfe, episode.decisions) == (3, 4, [])
    _, episode = start(EngineConfig(warmup_steps=0))
    assert (episode.step_index, episode.nfe) == (0, 1)


def test_warm_up_may_last_to_the_last_schedule_point() -> None:
    engine, episode = start(EngineConfig(num_steps=3, warmup_steps=2))
    assert episode.step_index == 2
    assert legal(engine, episode) == {"stop", "look", "restart"}


def test_everything_is_open_in_the_middle() -> None:
    assert legal(*start()) == set(ALL)


def test_no_step_leads_past_the_last_point() -> None:
    engine, episode = start(EngineConfig(actions=("continue", "stop", "leap-2", "leap-3", "refine")))
    take(engine, episode, "leap-3")
    assert (episode.step_index, legal(engine, episode)) == (6, set(engine.action_names))
    take(engine, episode, "continue")
    assert (episode.step_index, legal(engine, episode)) == (7, {"continue", "stop", "leap-2", "refine"})
    take(engine, episode, "continue")
    assert (episode.step_index, legal(engine, episode)) == (8, {"continue", "stop", "refine"})
    take(engine, episode, "refine")
    assert (episode.step_index, legal(engine, episode)) == (9, {"stop"})


def test_a_clean_prediction_is_looked_at_once() -> None:
    engine, episode = start()
    look(engine, episode, 0.3)
    assert legal(engine, episode) == set(ALL) - {"look"}
    take(engine, episode, "continue")
    assert "look" in legal(engine, episode)
    assert not episode.looked_here


def test_only_steps_are_open_in_the_warm_up_of_a_later_attempt() -> None:
    engine, episode = start(EngineConfig(warmup_steps=3))
    take(engine, episode, "restart")
    assert (episode.attempt, episode.step_index) == (2, 0)
    assert legal(engine, episode) == {"continue", "leap-2"}
    take(engine, episode, "leap-2")
    assert legal(engine, episode) == {"continue", "leap-2"}
    take(engine, episode, "continue")
    assert legal(engine, episode) == set(ALL)


def test_attempts_run_out() -> None:
    engine, episode = start(EngineConfig(warmup_steps=0, max_attempts=3))
    take(engine, episode, "restart", "restart")
    assert episode.attempt == 3
    assert "restart" not in legal(engine, episode)
    take(engine, episode, "stop")
    assert episode.result().attempts == 3


def test_the_last_of_max_decisions_is_a_stop() -> None:
    engine, episode = start(EngineConfig(max_decisions=3))
    take(engine, episode, "continue", "continue")
    assert legal(engine, episode) == {"stop"}


def test_without_stop_an_episode_ends_by_itself() -> None:
    engine, episode = start(EngineConfig(actions=("continue",), num_steps=6))
    take(engine, episode, "continue", "continue")
    assert episode.finished
    assert [record.step_index for record in episode.result().decisions] == [3, 4]


def test_illegal_actions_are_broken_invariants() -> None:
    engine, episode = start(EngineConfig(warmup_steps=3))
    take(engine, episode, "restart")
    with pytest.raises(AssertionError, match="stop is illegal"):
        take(engine, episode, "stop")


def test_records_tell_what_was_known() -> None:
    engine, episode = start()
    look(engine, episode, 0.25)
    take(engine, episode, "continue", "restart")
    first, second, third = episode.decisions
    assert (first.action, first.image_reward, first.nfe, first.step_index) == ("look", None, 4, 3)
    assert (second.action, second.image_reward, second.nfe) == ("continue", 0.25, 4)
    assert (third.action, third.image_reward, third.nfe, third.attempt) == ("restart", None, 5, 1)
    assert first.timestep == engine.schedule.points[3].timestep


def quality(episode: Episode) -> dict[str, float]:
    return dict(zip(QUALITY_FEATURES, episode.quality.tolist(), strict=True))


def test_a_look_fills_the_quality_vector() -> None:
    engine, episode = start()
    assert not episode.quality.any()
    unit = np.array([0.6, 0.8], dtype=np.float32)
    take(engine, episode, "look")
    assert episode.state == "looking"
    scores: dict[str, Any] = {"image_reward": 0.5, "clip_score": 0.3, "aesthetic": 5.0, "dino": unit}
    engine.receive_look(episode, {name: np.float32(value) for name, value in scores.items()})
    first = quality(episode)
    assert first["image_reward"] == first["best_image_reward"] == 0.5
    assert first["step_ratio"] == pytest.approx(3 / 9)
    assert first["nfe_ratio"] == pytest.approx(4 / 40)
    assert (first["aesthetic_delta"], first["dino_similarity"], first["looked"]) == (0.0, 0.0, 1.0)
    take(engine, episode, "continue", "look")
    scores |= {"image_reward": 0.4, "aesthetic": 5.25, "dino": unit[::-1]}
    engine.receive_look(episode, {name: np.float32(value) for name, value in scores.items()})
    second = quality(episode)
    assert second["aesthetic_delta"] == pytest.approx(0.25)
    assert second["dino_similarity"] == pytest.approx(0.96)
    assert second["best_image_reward"] == pytest.approx(0.4)  # the better preview was not kept
    assert episode.looks == 2
    assert episode.cost == pytest.approx(5 + 2 * 0.3)


def test_restart_keeps_the_best_kept_score_and_forgets_the_rest() -> None:
    engine, episode = start(EngineConfig(warmup_steps=0))
    look(engine, episode, 0.7)
    take(engine, episode, "restart")
    kept = quality(episode)
    assert kept.pop("best_image_reward") == pytest.approx(0.7)
    assert not any(kept.values())
    look(engine, episode, 0.2)
    assert quality(episode)["best_image_reward"] == pytest.approx(0.7)
    assert quality(episode)["image_reward"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("score", "error"), [(np.float32("nan"), FloatingPointError), (np.float32("inf"), FloatingPointError)]
)
def test_a_score_that_is_no_number_is_an_error(score: np.float32, error: type[Exception]) -> None:
    engine, episode = start()
    take(engine, episode, "look")
    with pytest.raises(error, match="image_reward is not finite: prompt 'owl', seed 1, step 3"):
        engine.receive_look(episode, {"image_reward": score})


def test_a_missing_score_is_an_error() -> None:
    engine, episode = start()
    take(engine, episode, "look")
    with pytest.raises(KeyError, match="image_reward is missing"):
        engine.receive_look(episode, {"clip_score": np.float32(0.2)})


@pytest.mark.parametrize(
    ("kept_score", "kept_steps", "final_score", "returned"),
    [
        (0.9, 9, 0.1, "kept"),  # better, and as far along
        (0.1, 9, 0.9, "current"),  # worse
        (0.9, 5, 0.1, "current"),  # better, but from earlier in the schedule
        (None, 9, 0.1, "current"),  # never looked at
    ],
)
def test_stop_returns_the_best_looked_at_image_that_is_as_far_along(
    kept_score: float | None, kept_steps: int, final_score: float | None, returned: str
) -> None:
    engine, episode = start(EngineConfig(warmup_steps=0))
    take(engine, episode, *["continue"] * kept_steps)
    episode.clean_CHW = kept = torch.full_like(episode.clean_CHW, 3.0)
    if kept_score is not None:
        look(engine, episode, kept_score)
    take(engine, episode, "restart", *["continue"] * 9)
    current = episode.clean_CHW
    if final_score is not None:
        look(engine, episode, final_score)
    take(engine, episode, "stop")
    assert torch.equal(episode.result().latents_CHW, kept if returned == "kept" else current)


@pytest.mark.parametrize(("score", "returned"), [(0.1, "kept"), (0.95, "current")])
def test_stop_looks_first_where_a_kept_image_could_be_better(score: float, returned: str) -> None:
    engine, episode = start(EngineConfig(warmup_steps=0))
    take(engine, episode, *["continue"] * 9)
    episode.clean_CHW = kept = torch.full_like(episode.clean_CHW, 3.0)
    look(engine, episode, 0.9)
    take(engine, episode, "restart", *["continue"] * 9)
    current = episode.clean_CHW
    engine.act(episode, engine.action_names.index("stop"))
    assert episode.state == "looking"
    engine.receive_look(episode, {"image_reward": np.float32(score)})
    assert episode.looks == 2
    assert torch.equal(episode.result().latents_CHW, kept if returned == "kept" else current)
    assert [record.action for record in episode.decisions].count("look") == 1


@pytest.mark.parametrize(("kept_steps", "kept_score"), [(5, 0.9), (9, None)])
def test_stop_looks_at_nothing_where_no_kept_image_could_be_returned(
    kept_steps: int, kept_score: float | None
) -> None:
    engine, episode = start(EngineConfig(warmup_steps=0))
    take(engine, episode, *["continue"] * kept_steps)
    if kept_score is not None:
        look(engine, episode, kept_score)
    take(engine, episode, "restart", *["continue"] * 9, "stop")
    assert episode.finished
    assert episode.looks == (kept_score is not None)


def test_stop_waits_for_its_share_of_the_schedule_unless_the_budget_is_spent() -> None:
    config = EngineConfig(num_steps=6, warmup_steps=0, stop_from=0.8, max_nfe=20)
    engine, episode = start(config)
    for _ in range(4):
        assert "stop" not in legal(engine, episode)
        take(engine, episode, "continue")
    assert "stop" in legal(engine, episode)
    engine, episode = start(replace(config, max_nfe=2))
    assert "stop" not in legal(engine, episode)
    take(engine, episode, "continue")
    assert "stop" in legal(engine, episode)


def test_no_result_before_the_end() -> None:
    _, episode = start()
    with pytest.raises(AssertionError, match="still deciding"):
        episode.result()


def test_restart_waits_for_a_look_where_it_is_told_to() -> None:
    engine, episode = start(EngineConfig(num_steps=3, warmup_steps=2, restart_needs_look=True))
    assert legal(engine, episode) == {"stop", "look"}
    engine.act(episode, engine.action_names.index("look"))
    engine.receive_look(episode, {"image_reward": np.float32(0.5)})
    assert legal(engine, episode) == {"stop", "restart"}
    blind, episode = start(
        EngineConfig(
            num_steps=3, warmup_steps=2, restart_needs_look=True, actions=("continue", "stop", "restart")
        )
    )
    assert legal(blind, episode) == {"stop", "restart"}, "without looks there is nothing to wait for"
