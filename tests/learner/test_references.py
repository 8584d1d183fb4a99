"""The references table, and what is calibrated on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.contracts import EpisodeRequest
from actors.engine import EngineConfig
from actors.errors import UserError
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.references import Reference, reference_key
from learner import references


def reference(prompt: str, seed: int, score: float) -> Reference:
    scores = {"clip_score": score, "aesthetic": 2 * score, "image_reward": -score}
    return Reference(EpisodeRequest(prompt, seed), scores, nfe=5)


def test_the_table_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "references.parquet"
    assert references.read_table(path) == {}
    rows = {"one": reference("a cat", 1, 0.1), "two": reference('a "dog"', 2**31, 1 / 3)}
    references.write_table(path, rows)
    assert references.read_table(path) == rows
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "references.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=r"references=.*damaged"):
        references.read_table(path)


def test_a_key_is_the_image_and_its_judges() -> None:
    request, engine = EpisodeRequest("a cat", 1), EngineConfig()
    key = reference_key(request, engine, "backbone", "scorers")
    same = replace(engine, actions=("continue", "stop"), max_nfe=10, look_price=9.0)
    assert reference_key(replace(request, tier="hard", max_nfe=3), same, "backbone", "scorers") == key
    others = {
        reference_key(replace(request, seed=2), engine, "backbone", "scorers"),
        reference_key(replace(request, prompt="a dog"), engine, "backbone", "scorers"),
        reference_key(request, replace(engine, num_steps=9), "backbone", "scorers"),
        reference_key(request, replace(engine, guidance_scale=1.0), "backbone", "scorers"),
        reference_key(request, engine, "another", "scorers"),
        reference_key(request, engine, "backbone", "others"),
    }
    assert len(others | {key}) == 7


def test_only_what_is_missing_is_computed() -> None:
    requests = [EpisodeRequest("a", seed) for seed in range(3)]
    known = {"k1": reference("a", 1, 0.0)}
    assert references.missing(requests, ["k0", "k1", "k2"], known) == [requests[0], requests[2]]


def test_a_scale_is_what_the_seeds_of_a_prompt_differ_by() -> None:
    generator = np.random.default_rng(0)
    levels = {"easy": 5.0, "hard": -5.0}
    found = [
        reference(prompt, seed, level + 0.3 * generator.standard_normal())
        for prompt, level in levels.items()
        for seed in range(200)
    ]
    scales = references.score_scales(found)
    assert scales["clip"] == pytest.approx(0.3, rel=0.1)
    assert scales["aesthetic"] == pytest.approx(2 * scales["clip"], rel=1e-6)
    assert scales["image_reward"] == pytest.approx(scales["clip"], rel=1e-6)


def test_with_one_seed_a_prompt_it_is_what_prompts_differ_by() -> None:
    values = np.array([1.0, 2.0, 4.0])
    assert references.spread(["a", "b", "c"], values) == pytest.approx(np.std(values))


def test_a_scale_is_never_zero() -> None:
    assert references.spread(["a", "a"], np.array([0.5, 0.5])) == 1.0


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
    statistics = references.normalisation(observed, observer)
    assert statistics.mean_D[:3] == pytest.approx([3.0, 0.0, 0.0], abs=0.2)
    widened = (128 * 2 / 132) ** 0.5  # one of two blocks, and 128 of 132 numbers
    assert statistics.std_D[:3] / widened == pytest.approx([2.0, 1.0, 1.0], abs=0.2)


def test_the_hardest_are_the_quarter_with_the_worst_references() -> None:
    assert references.hardest([3.0, 1.0, 2.0, 9.0, 0.5, 8.0, 7.0, 6.0]) == (4, 1)
    assert references.hardest([3.0, 1.0]) == (1,)
