"""`addiffusion rewards calibrate`: what it measures, prints and writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.cluster.conftest import Say
from tests.learner.toy import ToyBackbone, ToyScorer
from tune_configs.loading import compose

OPTIONS = (
    "prompts=file",
    "prompts.source=prompts.txt",
    "reward=balanced",
    "reward.beta.image_reward=1.0",
    "reward.beta.image_reward_now=0.0",
)


@pytest.fixture
def toy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The toy world behind the command, and three prompts; gives the devices that were asked for."""
    devices: list[str] = []
    (folder / "prompts.txt").write_text("one\ntwo\nthree\n")
    monkeypatch.setattr("actors.backbones.loading.load_backbone", lambda config: ToyBackbone())

    def load_scorers(folder: Path, device: str) -> list[ToyScorer]:
        devices.append(device)
        return [ToyScorer()]

    monkeypatch.setattr("rewards_service.world.load_scorers", load_scorers)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return devices


def brightness(prompts: int, seeds: int) -> list[list[float]]:
    """1 for each seed whose noise is white, as the toy world has it, by the run's own draw of seeds."""
    drawn = np.random.default_rng([0, 1]).integers(0, 2**31, size=(prompts, seeds))
    return [
        [
            float(torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(int(seed))).mean() > 0)
            for seed in row
        ]
        for row in drawn
    ]


def test_the_file_has_the_deviation_within_prompts_and_training_takes_it(
    say: Say, folder: Path, toy: list[str]
) -> None:
    asked = ("watch=none", "--prompts", "3", "--seeds", "6", "--device", "cpu", "--out", "scales.yaml")
    code, out, err = say("rewards", "calibrate", *OPTIONS, *asked)
    assert (code, err) == (0, "")
    values = np.array(brightness(3, 6))
    expected = np.sqrt(np.square(values - values.mean(axis=1, keepdims=True)).sum() / (18 - 3))
    stored = yaml.safe_load((folder / "scales.yaml").read_text())["reward"]
    assert stored["scales"] == pytest.approx(dict.fromkeys(("clip", "aesthetic", "image_reward"), expected))
    assert toy == ["cpu"]
    assert "18 references of toy" in out
    assert "addiffusion train @scales.yaml" in out
    reward = compose([*OPTIONS, "@scales.yaml"]).run.reward
    assert reward.sigma == stored["sigma"]
    assert {name: reward.scales[name] for name in stored["scales"]} == stored["scales"]
    assert reward.scales["image_reward_now"] == 0.2, "what was not measured stays as it is"


def test_what_is_printed_is_taken_back_as_overrides(say: Say, folder: Path, toy: list[str]) -> None:
    asked = ("--prompts", "3", "--seeds", "4")
    code, out, _ = say("rewards", "calibrate", *OPTIONS, *asked)
    assert code == 0
    overrides = out.splitlines()[-1].split()
    assert overrides[0].startswith("reward.sigma=")
    assert say("rewards", "calibrate", *OPTIONS, *asked, "--out", "a.yaml")[0] == 0
    assert compose([*OPTIONS, *overrides]) == compose([*OPTIONS, "@a.yaml"])
    assert sorted(path.name for path in folder.iterdir()) == ["a.yaml", "prompts.txt", "runs"]


def test_episodes_bound_the_sample_and_one_seed_is_said_to_be_no_repetition(
    say: Say, folder: Path, toy: list[str]
) -> None:
    code, out, _ = say("rewards", "calibrate", *OPTIONS, "--seeds", "1", "--episodes", "2")
    assert code == 0
    assert "2 references of toy" in out
    assert "differences between prompts" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--seeds", "0"), "--seeds=0"),
        (("--prompts", "few"), "'few'"),
        (("--out", "no/such/file.yaml"), "--out=no/such/file.yaml"),
        (("@none.yaml",), "@none.yaml: no such file"),
        (("reward.beta.image_reward_now=1.0",), "'image_reward_now', which backbone.scorers do not give"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], named: str, say: Say, folder: Path, toy: list[str]
) -> None:
    code, out, err = say("rewards", "calibrate", *OPTIONS, *arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["prompts.txt"]
