"""Which requests an env runner takes, and the episodes it hands to RLlib (no Ray session needed)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from actors import trajectory_store
from actors.contracts import EpisodeRequest, Images
from actors.env_runner import DiffusionEnvRunner
from actors.errors import UserError
from actors.ledger import Target
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.orders import ROUNDS, Orders, RunnerSettings, iteration_requests
from learner.config import PromptConfig
from learner.ppo import ppo_config
from learner.train import training_requests
from rewards_service.arithmetic import RewardConfig
from rewards_service.contracts import Pending
from tests.learner.toy import ToyBackbone, make_client, toy_config


def test_a_pass_takes_every_request_once() -> None:
    taken = [pair for iteration in range(5) for pair in iteration_requests(10, iteration, 4, seed=1)]
    assert sorted(taken) == sorted((round_, index) for round_ in range(2) for index in range(10))
    assert [index for _, index in taken[:10]] != [index for _, index in taken[10:]]


def test_runners_share_an_iteration_without_overlap() -> None:
    whole = iteration_requests(10, 3, 7, seed=1)
    shares = [iteration_requests(10, 3, 7, seed=1, share=(part, 3)) for part in range(3)]
    assert sorted(pair for share in shares for pair in share) == sorted(whole)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_another_seed_is_another_order() -> None:
    assert iteration_requests(50, 0, 50, seed=1) != iteration_requests(50, 0, 50, seed=2)


@pytest.fixture
def runner(tmp_path: Path) -> DiffusionEnvRunner:
    return make_runner(tmp_path)


def make_runner(tmp_path: Path, **changes: object) -> DiffusionEnvRunner:
    config = toy_config(tmp_path)
    observer = Observer(ObservationConfig(), ObservationSizes(2, 3), config.engine.actions)
    settings = RunnerSettings(
        make_backbone=ToyBackbone,
        make_client=make_client,
        engine=config.engine,
        observer=observer,
        requests=tuple(EpisodeRequest(f"prompt {index}", index) for index in range(12)),
        episodes_per_iteration=8,
        slots=4,
        groups=2,
        seed=3,
        trajectories=str(tmp_path / "trajectories"),
    )
    settings = dataclasses.replace(settings, **changes)  # type: ignore[arg-type]
    return DiffusionEnvRunner(config=ppo_config(config, settings))


def orders(iteration: int) -> Orders:
    target = Target({"clip_score": 0.0, "aesthetic": 0.0, "image_reward": 0.0})
    return Orders(iteration, RewardConfig(), (target,) * 12)


def test_episodes_are_whole_and_carry_what_ppo_needs(runner: DiffusionEnvRunner) -> None:
    runner.take_orders(orders(0))
    episodes = runner.sample()
    assert len(episodes) == 8
    for episode in episodes:
        steps = len(episode)
        assert episode.is_terminated
        assert episode.get_observations().shape == (steps + 1, runner.settings.observer.dim)
        logits_TA = np.asarray(episode.get_extra_model_outputs("action_dist_inputs"))
        log_probs_T = np.asarray(episode.get_extra_model_outputs("action_logp"))
        normalised = logits_TA - np.log(np.exp(logits_TA.astype(np.float64)).sum(axis=1, keepdims=True))
        chosen = normalised[np.arange(steps), episode.get_actions()]
        np.testing.assert_allclose(log_probs_T, chosen, atol=1e-5)


def test_an_iteration_can_be_sampled_again(runner: DiffusionEnvRunner) -> None:
    """What a replaced runner samples follows from its orders, not from what it did before."""
    runner.take_orders(orders(5))
    first = runner.sample()
    runner.take_orders(orders(6))
    runner.sample()
    runner.take_orders(orders(5))
    again = runner.sample()
    for one, other in zip(first, again, strict=True):
        assert one.id_ == other.id_
        np.testing.assert_array_equal(one.get_actions(), other.get_actions())
        np.testing.assert_array_equal(one.get_rewards(), other.get_rewards())


def test_without_exploration_the_best_action_is_taken(runner: DiffusionEnvRunner) -> None:
    runner.take_orders(orders(0))
    for episode in runner.sample(explore=False):
        logits_TA = np.asarray(episode.get_extra_model_outputs("action_dist_inputs"))
        np.testing.assert_array_equal(episode.get_actions(), logits_TA.argmax(axis=1))


def test_the_held_out_watch_scores_an_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same policy comes to the same images, and a better one to some of them."""
    runner = make_runner(tmp_path, memo_mib=1.0)
    assert runner.collector is not None
    scored: list[int] = []
    client = runner.collector.client

    class Counting:
        def submit(self, images: Images, prompts: Sequence[str], outputs: Sequence[str]) -> Pending:
            scored.append(len(images))
            return client.submit(images, prompts, outputs)

    monkeypatch.setattr(runner.collector, "client", Counting())
    requests = [EpisodeRequest(f"held out {index}", index) for index in range(6)]
    first = runner.run_held_out(requests, "image_reward", [])
    assert sum(scored) >= len(requests)
    scored.clear()
    assert runner.run_held_out(requests, "image_reward", []) == first
    assert scored == []


def test_state_carries_orders_and_weights(runner: DiffusionEnvRunner) -> None:
    runner.take_orders(orders(4))
    state = runner.get_state()
    runner.take_orders(orders(0))
    runner.set_state(state)
    assert runner.orders is not None
    assert runner.orders.iteration == 4


def test_older_weights_are_not_taken(runner: DiffusionEnvRunner) -> None:
    state = runner.get_state()
    zeros = {name: np.zeros_like(values) for name, values in state["rl_module"].items()}
    runner.set_state({**state, "weights_seq_no": 3})
    runner.set_state({"rl_module": zeros, "weights_seq_no": 2})
    weights = runner.get_state()["rl_module"]
    assert any(np.asarray(values).any() for values in weights.values())
    runner.set_state({"rl_module": zeros, "weights_seq_no": 4})
    assert not any(np.asarray(values).any() for values in runner.get_state()["rl_module"].values())


def test_trajectories_are_stored_as_they_were(runner: DiffusionEnvRunner, tmp_path: Path) -> None:
    runner.take_orders(orders(0))
    episodes = {episode.id_: episode for episode in runner.sample()}
    rows = trajectory_store.read(tmp_path / "trajectories").to_pylist()
    assert len(rows) == sum(len(episode) for episode in episodes.values())
    for row in rows:
        episode, t = episodes[row["eps_id"]], row["t"]
        np.testing.assert_array_equal(row["obs"], episode.get_observations(t))
        assert row["actions"] == episode.get_actions(t)
        assert row["rewards"] == pytest.approx(episode.get_rewards(t), abs=1e-6)
        parts = [row[f"reward_{part}"] for part in ("quality", "stability", "efficiency", "terminal")]
        assert sum(parts) == pytest.approx(row["rewards"], abs=1e-5)
        assert (row["reward_terminal"] != 0.0) <= row["terminateds"]
        assert row["reward_efficiency"] <= 0.0
        assert row["terminateds"] == (t == len(episode) - 1)


def test_stored_values_are_the_critics(runner: DiffusionEnvRunner, tmp_path: Path) -> None:
    runner.take_orders(orders(0))
    episodes = runner.sample()
    table = trajectory_store.read(tmp_path / "trajectories")
    observations_ND = np.concatenate([episode.get_observations()[:-1] for episode in episodes])
    with torch.no_grad():
        expected_N = runner.module.compute_values({"obs": torch.from_numpy(observations_ND)})
    np.testing.assert_allclose(table["values"].to_numpy(), expected_N.numpy(), atol=1e-5)
    assert np.std(expected_N.numpy()) > 0


def test_a_folder_without_trajectories_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.parquet file"):
        trajectory_store.read(tmp_path)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "tsv", "parquet", "json"])
def test_which_prompts_of_a_file_an_iteration_takes_does_not_depend_on_the_number_of_runners(
    tmp_path: Path, suffix: str
) -> None:
    """With a curriculum too: the union over the runners follows from seed and iteration alone."""
    path = prompt_file(tmp_path / f"prompts.{suffix}", [f"prompt {number}" for number in range(30)])
    config = toy_config(tmp_path, prompts=PromptConfig(source=str(path), limit=20, seeds=3))
    requests = training_requests(config)
    assert requests == training_requests(config)
    assert {request.prompt for request in requests} == {f"prompt {number}" for number in range(20)}
    assert len(set(requests)) == 60
    focus, share = (3, 4, 8), 0.5
    for iteration in (0, 1, 7):
        unions = []
        for runners in (1, 2, 3, 8):
            parts = [
                iteration_requests(
                    len(requests), iteration, 32, 5, (part, runners), focus=focus, focus_share=share
                )
                for part in range(runners)
            ]
            unions.append(sorted(pair for part in parts for pair in part))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert unions[0] == unions[1] == unions[2] == unions[3]
        assert len(set(unions[0])) == 32
    plain = iteration_requests(60, 2, 32, seed=5)
    assert iteration_requests(60, 2, 32, seed=5, focus=focus) == plain
    assert iteration_requests(60, 2, 32, seed=5, focus_share=share) == plain


def prompt_file(path: Path, prompts: list[str]) -> Path:
    """The same prompts in the format that the suffix names."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"prompt": prompts}), path)
        return path
    annotations = [{"id": 9, "image_id": each, "caption": text} for each, text in enumerate(prompts)]
    path.write_text(
        {
            ".txt": "\n".join(prompts),
            ".jsonl": "\n".join(json.dumps({"prompt": prompt}) for prompt in prompts),
            ".tsv": "\n".join(["Prompt", *prompts]),
            ".json": json.dumps({"annotations": annotations}),
        }[path.suffix]
    )
    return path


def test_requests_are_repeated_in_a_row_each_with_its_own_randomness() -> None:
    pairs = [pair for iteration in range(4) for pair in iteration_requests(5, iteration, 6, 1, repeats=3)]
    assert len(set(pairs)) == len(pairs) == 24
    indices = [index for _, index in pairs]
    assert indices == [index for index in indices[::3] for _ in range(3)]
    assert sorted(indices[::3][:5]) == list(range(5)), "the first pass takes all"
    focused = [
        index for _, index in iteration_requests(50, 0, 30, 1, repeats=3, focus=(3, 4), focus_share=1.0)
    ]
    assert focused == [index for index in focused[::3] for _ in range(3)]


def test_a_runner_of_an_asynchronous_algorithm_counts_its_own_rounds(runner: DiffusionEnvRunner) -> None:
    synchronous = []
    for iteration in range(3):
        runner.take_orders(orders(iteration))
        synchronous.append([episode.id_ for episode in runner.sample()])
    runner.rounds, runner.index = 0, 1
    runner.take_orders(dataclasses.replace(orders(7), rounds=(0,)))
    assert [episode.id_ for episode in runner.sample()] == synchronous[0]
    runner.take_orders(dataclasses.replace(orders(9), rounds=(0,)))
    episodes, state, _ = runner.sample_get_state_and_metrics()
    assert [episode.id_ for episode in episodes] == synchronous[1], (
        "orders of an earlier round turn nothing back"
    )
    assert state == {ROUNDS: 2}
    runner.rounds = 0
    runner.take_orders(dataclasses.replace(orders(9), rounds=(2,)))
    assert [episode.id_ for episode in runner.sample()] == synchronous[2], "a replaced runner goes on"
