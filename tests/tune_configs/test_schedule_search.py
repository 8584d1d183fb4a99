"""Searched timesteps, where the best ones are known: the later the last call, the brighter the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors.contracts import EpisodeRequest, Images
from actors.engine import Engine, EngineConfig
from actors.errors import UserError
from actors.references import reference_config
from actors.schedule import spaced_timesteps
from evaluation.bench import Bench
from learner.json_lines import read_rows
from tests.learner.smooth import TAUS, SmoothBackbone
from tests.learner.toy import make_client
from tune_configs.ledger import read_outcomes
from tune_configs.plan import run_config
from tune_configs.results import table
from tune_configs.schedule_search import (
    TRIED,
    gaps_of,
    measure,
    open_bench_of,
    search_schedules,
    timesteps_of,
)
from tune_configs.sweep import Prepared, prepare
from tune_configs.sweep_files import as_sweep


def brightness(images: Images, prompts: object) -> np.ndarray:  # type: ignore[type-arg]
    return images.reshape(len(images), -1).mean(1).astype(np.float32) / 255.0


def open_bench() -> Bench:
    return Bench(SmoothBackbone(), make_client(), brightness, "brightness", "smooth")


def prepared(folder: Path, proposals: int) -> Prepared:
    prompts = folder / "lengths.txt"
    lines = [letter * length for letter in "abcd" for length in range(1, len(TAUS) + 1)]
    prompts.write_text("\n".join(lines))
    content = {
        "description": "x",
        "schedule": {"steps": [3], "proposals": proposals, "prompts": 8},
        "judge": {"prompts": 12, "seeds": 2, "fewest_prompts": 2, "resamples": 200},
    }
    overrides = [
        "prompts=file",
        f"prompts.source={prompts}",
        "watch.share=0.5",
        "solver=dpmpp",
        "resources.slots=8",
    ]
    return prepare(
        as_sweep("sweep", "schedule", content), overrides, folder / "schedule", "sqlite:///none.db"
    )


def test_a_search_finds_later_calls_is_judged_on_other_prompts_and_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    first, whole = prepared(tmp_path, 4), prepared(tmp_path, 40)
    assert [spec.id for spec in whole.specs] == ["steps-3-spaced", "steps-3-searched"]

    def search(one: Prepared) -> None:
        search_schedules(
            one.folder, one.sweep.config, one.base, one.specs, lambda line: None, open_bench=open_bench
        )

    search(first)
    file = whole.folder / "steps-3-searched" / TRIED
    began = file.read_bytes()
    own = spaced_timesteps(3, 1000, "linspace", "dpmpp")
    assert read_rows(file)[0]["timesteps"] == own.tolist(), "the solver's own spacing is tried first"
    search(whole)
    tried = read_rows(file)
    assert file.read_bytes().startswith(began)
    assert len(tried) == 40

    spaced, searched = table(whole.sweep, whole.specs, read_outcomes(whole.folder))
    assert spaced.is_reference
    assert searched.numbers["nfe"] == spaced.numbers["nfe"] == 3
    assert searched.difference is not None
    assert searched.difference.low > 0.0
    best = max(tried, key=lambda row: row["quality"])
    assert best["timesteps"][-1] < own[-1] / 2
    told = read_outcomes(whole.folder)["steps-3-searched"].spec.overrides[-1]
    assert told == f"engine.timesteps=[{','.join(map(str, best['timesteps']))}]"


def test_timesteps_of_ones_own_are_the_points_of_the_schedule() -> None:
    config = EngineConfig(num_steps=3, warmup_steps=0, actions=("continue", "stop"), timesteps=(900, 500, 3))
    engine = Engine(SmoothBackbone(), config)
    assert [point.timestep for point in engine.schedule.points] == [900, 500, 3]
    same = EngineConfig(num_steps=3, warmup_steps=0, actions=("continue", "stop"))
    points = tuple(int(point.timestep) for point in Engine(SmoothBackbone(), same).schedule.points)
    requests = [EpisodeRequest("x" * length, length) for length in range(1, 9)]
    bench = open_bench()
    spelt_out = EngineConfig(num_steps=3, warmup_steps=0, actions=("continue", "stop"), timesteps=points)
    rows = [measure(bench, one, requests, 4) for one in (same, spelt_out)]
    assert [row.quality for row in rows[0]] == [row.quality for row in rows[1]]
    assert reference_config(config, 3).timesteps == (900, 500, 3)
    assert reference_config(config, 2).timesteps is None
    with pytest.raises(UserError, match=r"engine\.timesteps begin at 1000; accepted: up to 999"):
        Engine(SmoothBackbone(), EngineConfig(num_steps=2, warmup_steps=0, timesteps=(1000, 1)))


def test_schedules_are_judged_by_the_score_that_policies_are_judged_by() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    captions = ["a red circle", "a blue square", "a green triangle"]
    for score in ("clip_score", "image_reward_now"):
        bench = open_bench_of(run_config([f"watch.score={score}"]))
        expected = bench.client.score(images, captions, (score,))[score]
        assert bench.judge(images, captions).tolist() == expected.tolist()


@pytest.mark.parametrize("timesteps", [(1, 2, 3), (3, 2), (3, 2, 2), (3, 2, -1)])
def test_timesteps_that_are_no_schedule_are_refused(timesteps: tuple[int, ...]) -> None:
    with pytest.raises(
        UserError, match=r"engine\.timesteps is .*; accepted: 3 whole numbers from 0, descending"
    ):
        EngineConfig(num_steps=3, warmup_steps=0, timesteps=timesteps)


@pytest.mark.parametrize("steps", [2, 5, 7, 10, 20])
def test_gaps_give_back_the_timesteps_they_came_from(steps: int) -> None:
    own = [int(t) for t in spaced_timesteps(steps, 1000, "linspace", "dpmpp")]
    assert timesteps_of(gaps_of(own), own[0]) == tuple(own)


def test_any_gaps_give_timesteps_that_a_schedule_can_have() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        steps = int(generator.integers(2, 30))
        times = timesteps_of((generator.uniform(0.0, 1.0, steps) ** 8).tolist(), 999)
        assert len(times) == len(set(times)) == steps
        assert times == tuple(sorted(times, reverse=True))
        assert times[0] == 999
        assert times[-1] >= 0
