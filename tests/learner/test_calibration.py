"""What is measured on references, and that training and the command measure the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from actors.contracts import EpisodeRequest
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.references import Reference
from learner import calibration
from learner.calibration import Calibration, calibrate, local_references
from learner.train import training_requests
from rewards_service.arithmetic import RewardConfig
from tests.learner.toy import ToyBackbone, make_client, toy_config


def reference(prompt: str, seed: int, score: float) -> Reference:
    scores = {"clip_score": score, "aesthetic": 2 * score, "image_reward": -score}
    return Reference(EpisodeRequest(prompt, seed), scores, nfe=5)


def sample(count: int = 40) -> list[Reference]:
    generator = np.random.default_rng(1)
    return [
        reference(f"prompt {index % 8}", index, index % 8 + generator.normal(0, 0.3))
        for index in range(count)
    ]


def test_scales_then_sigma_by_hand() -> None:
    """Pooled within prompts, one degree of freedom less for each: unbiased whatever the number of seeds."""
    found = [reference("a", 0, 1.0), reference("a", 1, 3.0), reference("b", 0, 10.0), reference("b", 1, 11.0)]
    measured = calibrate(found, RewardConfig(beta={"clip": 1.0, "aesthetic": 3.0}))
    deviation = np.sqrt((1 + 1 + 0.25 + 0.25) / 2)
    assert measured.scales == pytest.approx(
        {"clip": deviation, "aesthetic": 2 * deviation, "image_reward": deviation}
    )
    # Both metrics are the same number once each is divided by its scale, and so is their mean.
    assert measured.sigma == pytest.approx(1.0)


def test_units_of_a_metric_change_its_scale_and_nothing_else() -> None:
    """A reward calibrated on a metric in other units pays the same: the scale takes them up."""
    found = sample()
    other = [
        replace(each, scores=each.scores | {"aesthetic": 1000 * each.scores["aesthetic"]}) for each in found
    ]
    one, two = calibrate(found, RewardConfig()), calibrate(other, RewardConfig())
    assert two.scales["aesthetic"] == pytest.approx(1000 * one.scales["aesthetic"])
    assert two.sigma == pytest.approx(one.sigma)


def test_a_metric_that_some_have_not_is_not_measured() -> None:
    found = sample()
    found[3] = replace(found[3], scores={name: 0.0 for name in found[3].scores if name != "aesthetic"})
    reward = RewardConfig(alpha={"clip": 1.0}, beta={"clip": 1.0})
    assert set(calibrate(found, reward).scales) == {"clip", "image_reward"}


def test_numbers_that_are_given_are_kept() -> None:
    reward = RewardConfig(sigma=0.7)
    measured = calibrate(sample(), reward)
    assert measured == Calibration(reward.scales, 0.7)
    assert measured.applied(reward) == reward


def test_the_file_holds_the_numbers_to_the_last_digit(tmp_path: Path) -> None:
    measured = calibrate(sample(), RewardConfig())
    path = tmp_path / "calibration.yaml"
    measured.write(path, "40 references of a toy")
    assert list(tmp_path.iterdir()) == [path]
    stored = yaml.safe_load(path.read_text())
    assert stored == {"reward": {"scales": measured.scales, "sigma": measured.sigma}}
    assert path.read_text().startswith("# Measured on 40 references of a toy")


def test_references_in_this_process_are_those_a_run_finds(tmp_path: Path) -> None:
    """Half of all seeds are white, and the score is the brightness: mean 1/2, and known to its last bit."""
    config = toy_config(tmp_path)
    requests = training_requests(config)
    told: list[tuple[int, int]] = []

    def references() -> list[Reference]:
        return local_references(
            config, ToyBackbone(), make_client(), "toy", requests, lambda *now: told.append(now)
        )

    found = references()
    assert [each.request for each in found] == [EpisodeRequest(each.prompt, each.seed) for each in requests]
    assert {each.scores["image_reward"] for each in found} == {0.0, 1.0}
    assert {each.nfe for each in found} == {config.engine.num_steps}
    assert told == [(8, 32), (16, 32), (24, 32), (32, 32)]
    told.clear()
    assert references() == found
    assert told == [], "nothing is run twice"


def test_a_scale_is_what_the_seeds_of_a_prompt_differ_by() -> None:
    generator = np.random.default_rng(0)
    levels = {"easy": 5.0, "hard": -5.0}
    found = [
        reference(prompt, seed, level + 0.3 * generator.standard_normal())
        for prompt, level in levels.items()
        for seed in range(200)
    ]
    scales = calibration.score_scales(found)
    assert scales["clip"] == pytest.approx(0.3, rel=0.1)
    assert scales["aesthetic"] == pytest.approx(2 * scales["clip"], rel=1e-6)
    assert scales["image_reward"] == pytest.approx(scales["clip"], rel=1e-6)


def test_with_one_seed_a_prompt_it_is_what_prompts_differ_by() -> None:
    values = np.array([1.0, 2.0, 4.0])
    assert calibration.spread(["a", "b", "c"], values) == pytest.approx(np.std(values))


def test_a_scale_is_never_zero() -> None:
    assert calibration.spread(["a", "a"], np.array([0.5, 0.5])) == 1.0


def test_normalisation_leaves_constant_inputs_alone() -> None:
    generator = np.random.default_rng(0)
    observed = [
        replace(
            reference("a", seed, 0.0),
            observations_TD=np.stack(
                [generator.normal(3.0, 2.0, 50), np.full(50, 7.0), *np.zeros((130, 50))], axis=1
            ).astype(np.float32),
        )
        for seed in range(40)
    ]
    observer = Observer(ObservationConfig("timestep", False), ObservationSizes(1, 1), ("continue", "stop"))
    statistics = calibration.normalisation(observed, observer)
    assert statistics.mean_D[:3] == pytest.approx([3.0, 0.0, 0.0], abs=0.2)
    widened = (128 * 2 / 132) ** 0.5  # one of two blocks, and 128 of 132 numbers
    assert statistics.std_D[:3] / widened == pytest.approx([2.0, 1.0, 1.0], abs=0.2)
