"""Held-out prompts: which they are, what the policy makes of them, and that training does not feel them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from actors.collector import Collector
from actors.contracts import EpisodeRequest
from actors.engine import Engine
from actors.errors import UserError
from actors.held_out import run_held_out
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.policy import load_policy
from learner.config import CheckpointConfig, PromptConfig, RunConfig
from learner.guard_config import ProgressConfig, WatchConfig
from learner.held_out import held_out_requests, split_prompts
from learner.json_lines import read_rows
from learner.train import train
from rewards_service.arithmetic import HELD_OUT_PRICE
from tests.learner.test_train import LEARNING, same, weights, without_times
from tests.learner.toy import ToyBackbone, make_client, toy_config, toy_world


def file_config(tmp_path: Path, lines: list[str], **watch: object) -> RunConfig:
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(lines))
    prompts = PromptConfig(source=str(path), limit=None)
    return RunConfig(prompts=prompts, watch=WatchConfig(**watch))  # type: ignore[arg-type]


def test_a_share_of_a_files_prompts_is_held_out_whatever_their_order(tmp_path: Path) -> None:
    lines = [f"prompt {number}" for number in range(50)]
    training, held_out = split_prompts(file_config(tmp_path, lines))
    assert len(held_out) == 5
    assert sorted(prompt.text for prompt in (*training, *held_out)) == sorted(lines)
    assert [prompt.text for prompt in training] == [
        line for line in lines if line not in {prompt.text for prompt in held_out}
    ]
    _, shuffled = split_prompts(file_config(tmp_path, lines[::-1]))
    assert {prompt.text for prompt in shuffled} == {prompt.text for prompt in held_out}
    assert len(split_prompts(file_config(tmp_path, lines, prompts=3))[1]) == 3
    assert split_prompts(file_config(tmp_path, lines, every=0))[1] == []


def test_a_prompt_that_stands_twice_is_on_one_side(tmp_path: Path) -> None:
    training, held_out = split_prompts(file_config(tmp_path, [f"prompt {n % 4}" for n in range(40)]))
    assert len(held_out) == 1
    assert len(training) == 3
    assert held_out[0].text not in {prompt.text for prompt in training}


def test_the_embedded_world_is_watched_on_its_validation_split() -> None:
    training, held_out = split_prompts(RunConfig())
    assert len(held_out) == 32
    assert not {prompt.text for prompt in training} & {prompt.text for prompt in held_out}
    without = split_prompts(RunConfig(watch=WatchConfig(every=0)))[0]
    assert training == without, "training is on the same prompts with and without a watch"
    assert held_out_requests(RunConfig()) == held_out_requests(RunConfig(seed=5))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (RunConfig(watch=WatchConfig(split="train")), "watch.split=train"),
        (RunConfig(watch=WatchConfig(split="exam")), "watch.split is 'exam'"),
    ],
)
def test_a_split_that_cannot_be_held_out_is_named(config: RunConfig, named: str) -> None:
    with pytest.raises(UserError, match=named):
        split_prompts(config)


def test_one_prompt_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one prompt, and none to hold out"):
        split_prompts(file_config(tmp_path, ["alone"]))


def test_the_policys_best_actions_are_run_and_counted(tmp_path: Path) -> None:
    """The toy world's image is white, and good, where the mean of the noise is positive."""
    engine = Engine(ToyBackbone(), toy_config(tmp_path).engine)
    observer = Observer(ObservationConfig(), ObservationSizes(2, 3), engine.action_names)
    collector = Collector(engine, observer, make_client(), slots=4, groups=2)
    stop = engine.action_names.index("stop")

    def at_once(observations_BD: np.ndarray, mask_BA: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.where(np.arange(mask_BA.shape[1]) == stop, 1.0, np.where(mask_BA, 0.0, -1e9))

    requests = [EpisodeRequest("a prompt", seed) for seed in range(12)]
    before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    episodes = run_held_out(collector, requests, at_once, "image_reward", requests[:2])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state(legacy=False)["state"]["key"] == before[1]).all()
    for episode in episodes:
        noise = torch.randn((1, 2, 2), generator=torch.Generator().manual_seed(episode.request.seed))
        assert episode.quality == float(noise.mean() > 0)
        assert (episode.nfe, episode.cost, episode.actions) == (1, 1.0, ("stop",))
    assert [episode.image_HWC is not None for episode in episodes] == [True] * 2 + [False] * 10
    assert {episode.quality for episode in episodes} == {0.0, 1.0}


@pytest.mark.usefixtures("ray_session")
def test_a_watched_run_learns_the_same_and_keeps_its_best_policy(tmp_path: Path) -> None:
    ppo = replace(LEARNING, iterations=8, episodes_per_iteration=32)
    watch = WatchConfig(every=2, prompts=4, share=0.5, keep="best")
    config = toy_config(
        tmp_path,
        name="watched",
        ppo=ppo,
        watch=watch,
        progress=ProgressConfig(pictures=2, pictures_every=4),
        checkpoints=CheckpointConfig(every=100, trajectories=False),
    )
    watched = train(config, world=toy_world)
    training, held_out = split_prompts(config)
    assert len(held_out) == 4
    # The same prompts without a watch: what is not held out stands in a file of its own.
    left = tmp_path / "left.txt"
    left.write_text("\n".join(prompt.text for prompt in training))
    alone = replace(
        config, name="alone", prompts=replace(config.prompts, source=str(left)), watch=WatchConfig(every=0)
    )
    unwatched = train(alone, world=toy_world)
    rows = read_rows(watched.run_dir / "progress.jsonl")
    plain = [{name: value for name, value in row.items() if "held_out" not in name} for row in rows]
    assert without_times(plain) == without_times(read_rows(unwatched.run_dir / "progress.jsonl"))

    evaluated = [row for row in rows if "held_out/utility" in row]
    assert [row["iteration"] for row in evaluated] == [2, 4, 6, 8]
    for row in evaluated:
        expected = row["held_out/quality"] - HELD_OUT_PRICE * row["held_out/cost"]
        assert row["held_out/utility"] == pytest.approx(expected)
        assert 0 < row["held_out/share"] < 1
    best = max(evaluated, key=lambda row: row["held_out/utility"])["iteration"]
    assert load_policy(watched.policy_dir)[1]["iteration"] == best
    if best == 8:
        assert same(weights(watched.policy_dir), weights(unwatched.policy_dir))
    shown = sorted((watched.run_dir / "pictures").iterdir())
    assert [path.name for path in shown] == ["iteration-000004.png", "iteration-000008.png"]
    assert Image.open(shown[0]).size[0] > 400
