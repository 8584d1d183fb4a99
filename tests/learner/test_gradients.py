"""Gradients that are not finite: skipped, counted, said, and in a row the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from actors.contracts import EpisodeRequest
from actors.engine import EngineConfig
from actors.orders import RunnerSettings
from learner.gradients import SKIPPED, SKIPPED_IN_A_ROW, check_skipped
from learner.guards import TrainingFailure
from learner.ppo import ppo_config
from tests.learner.stopping import OBSERVER
from tests.learner.toy import ToyBackbone, make_client, toy_config


def build(tmp_path: Path) -> Any:
    config = toy_config(tmp_path, engine=EngineConfig(actions=OBSERVER.actions))
    settings = RunnerSettings(
        ToyBackbone, make_client, config.engine, OBSERVER, (EpisodeRequest("a", 0),), 8, 4, 1, seed=0
    )
    return ppo_config(config, settings).build_learner(
        env=None,
        spaces={
            DEFAULT_MODULE_ID: (
                gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVER.dim,), np.float32),
                gymnasium.spaces.Discrete(3),
            )
        },
    )


def episodes(count: int) -> list[SingleAgentEpisode]:
    generator = np.random.default_rng(0)
    found = []
    for index in range(count):
        observations = generator.normal(size=(5, OBSERVER.dim)).astype(np.float32)
        observations[:, -3:] = 1.0
        rewards = generator.normal(size=4)
        found.append(
            SingleAgentEpisode(
                id_=str(index),
                observations=list(observations),
                actions=[0, 1, 2, 1],
                rewards=list(rewards),
                terminated=True,
                extra_model_outputs={
                    Columns.ACTION_LOGP: [np.float32(np.log(1 / 3))] * 4,
                    Columns.ACTION_DIST_INPUTS: [np.zeros(3, np.float32)] * 4,
                },
                observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVER.dim,), np.float32),
                action_space=gymnasium.spaces.Discrete(3),
                len_lookback_buffer=0,
            ).to_numpy()
        )
    return found


def parameters(learner: Any) -> list[torch.Tensor]:
    return [value.detach().clone() for value in learner.module[DEFAULT_MODULE_ID].parameters()]


def update(learner: Any) -> dict[str, float]:
    results = learner.update(episodes=episodes(16), num_epochs=1, minibatch_size=32, timesteps={})
    return {name: float(results[DEFAULT_MODULE_ID][name].peek()) for name in (SKIPPED, SKIPPED_IN_A_ROW)}


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = build(tmp_path)
    assert update(learner) == {SKIPPED: 0, SKIPPED_IN_A_ROW: 0}
    before = parameters(learner)
    compute = learner.compute_gradients

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        gradients = compute(*args, **kwargs)
        next(iter(gradients.values())).view(-1)[0] = float("nan")
        return gradients

    with monkeypatch.context() as patch:
        patch.setattr(learner, "compute_gradients", poisoned)
        assert update(learner) == {SKIPPED: 3, SKIPPED_IN_A_ROW: 3}
        assert all(torch.equal(old, new) for old, new in zip(before, parameters(learner), strict=True))
        assert update(learner) == {SKIPPED: 3, SKIPPED_IN_A_ROW: 6}, "a row goes on from update to update"
    assert update(learner) == {SKIPPED: 0, SKIPPED_IN_A_ROW: 6}
    assert not all(torch.equal(old, new) for old, new in zip(before, parameters(learner), strict=True))
    assert all(value.isfinite().all() for value in parameters(learner))
    assert update(learner) == {SKIPPED: 0, SKIPPED_IN_A_ROW: 0}


def test_a_long_row_ends_the_run() -> None:
    check_skipped({"iteration": 3, SKIPPED_IN_A_ROW: 19}, most=20)
    check_skipped({"iteration": 3, "episodes": 0}, most=20)
    with pytest.raises(TrainingFailure, match="iteration 4: the gradients of 20 updates in a row"):
        check_skipped({"iteration": 4, SKIPPED_IN_A_ROW: 20}, most=20)
