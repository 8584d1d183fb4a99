"""Baselines through the real engine on a tiny backbone: what they cost and which image they return."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from actors.contracts import EpisodeRequest
from actors.engine import EngineConfig
from actors.errors import UserError
from actors.schedule import SolverName
from evaluation.baselines import DEFAULT_BASELINES, check_baselines, parse_baseline
from evaluation.bench import Bench
from evaluation.generate import Generated, Job, generate
from evaluation.methods import BaselineMethod, config_hash
from tests.evaluation.fakes import ENGINE, FakeBackbone, open_fake_bench

REQUESTS = tuple(EpisodeRequest(f"prompt {index}", 100 + index, "1") for index in range(7))


def run(name: str, bench: Bench | None = None) -> Generated:
    baseline = parse_baseline(name)
    method = BaselineMethod(baseline, baseline.engine_config(ENGINE))
    return generate(bench or open_fake_bench(), Job(method, REQUESTS, slots=3))


@pytest.mark.parametrize(
    ("name", "nfe", "looks"),
    [
        ("ddim-5", 5, 0),
        ("ddim-50", 50, 0),
        ("dpmpp-2", 2, 0),
        ("dpmpp-9", 9, 0),
        ("best-of-2@4", 8, 2),
        ("best-of-4@10", 40, 4),
        ("oracle-best-of-3@3", 9, 3),
    ],
)
def test_every_denoiser_call_and_every_look_is_counted(name: str, nfe: int, looks: int) -> None:
    bench = open_fake_bench()
    made = run(name, bench)
    for row in made.rows:
        assert (row.nfe, row.network_evals, row.looks) == (nfe, 2 * nfe, looks)
        assert row.cost == pytest.approx(nfe + looks * ENGINE.look_price)
        assert row.actions[-1] == "stop"
    assert isinstance(bench.backbone, FakeBackbone)
    assert bench.backbone.rows_denoised == nfe * len(REQUESTS)


def test_best_of_returns_the_attempt_the_scorer_liked_best() -> None:
    made, single = run("best-of-3@5"), run("dpmpp-5")
    improved = 0
    for row, episode, alone in zip(made.rows, made.episodes, single.rows, strict=True):
        seen = [decision.image_reward for decision in episode.decisions if decision.action != "look"]
        scores = [score for score in seen if score is not None]
        assert len(scores) == 3
        assert row.image_reward == pytest.approx(max(scores), abs=1e-6)
        assert scores[0] == pytest.approx(alone.image_reward, abs=1e-6), "the first attempt is the plain run"
        improved += max(scores) > scores[0]
    assert improved > 0


def test_the_oracle_is_a_bound_on_what_the_metric_can_get_from_the_same_attempts() -> None:
    made, oracle, single = run("best-of-3@5"), run("oracle-best-of-3@5"), run("dpmpp-5")
    quality, best, alone = (np.array([row.quality for row in each.rows]) for each in (made, oracle, single))
    assert (best >= quality - 1e-6).all()
    assert (best >= alone - 1e-6).all()
    assert best.mean() > quality.mean()


def test_results_do_not_depend_on_the_slots() -> None:
    baseline = parse_baseline("best-of-2@4")
    method = BaselineMethod(baseline, baseline.engine_config(ENGINE))
    bench = open_fake_bench()
    one, many = (generate(bench, Job(method, REQUESTS, slots)).rows for slots in (1, 7))
    assert [replace(row, seconds=0) for row in one] == [replace(row, seconds=0) for row in many]


@pytest.mark.parametrize(
    "name",
    ["", "ddim", "ddim-1", "dpmpp-0", "dpmpp-1001", "best-of-1@10", "best-of-2@", "heun-10", "ddim-10 "],
)
def test_what_is_no_baseline_is_one_line_that_says_what_is(name: str) -> None:
    with pytest.raises(UserError, match="best-of-K@N") as caught:
        parse_baseline(name)
    assert "\n" not in str(caught.value)
    assert repr(name) in str(caught.value)


def test_default_grid_has_what_the_hypotheses_need() -> None:
    assert "ddim-50" in DEFAULT_BASELINES
    assert not any(parse_baseline(name).oracle for name in DEFAULT_BASELINES)


@pytest.mark.parametrize(
    ("name", "policy", "expected"),
    [
        ("euler-8", EngineConfig(solver="flow_euler"), ("flow_euler", 0.0)),
        ("best-of-2@4", EngineConfig(solver="flow_euler"), ("dpmpp", 0.0)),
        ("lcm-4", EngineConfig(solver="lcm"), ("lcm", 0.0)),
        ("best-of-2@4", EngineConfig(solver="lcm"), ("lcm", 0.0)),
        ("best-of-2@4", EngineConfig(solver="ddim", eta=1.0, timestep_spacing="trailing"), ("ddim", 1.0)),
        ("best-of-2@4", EngineConfig(solver="ddim"), ("dpmpp", 0.0)),
        ("ddim-8", EngineConfig(solver="ddim", eta=0.0), ("ddim", 0.0)),
    ],
)
def test_distilled_models_step_as_they_were_distilled_for(
    name: str, policy: EngineConfig, expected: tuple[str, float]
) -> None:
    config = parse_baseline(name).engine_config(policy)
    assert (config.solver, config.eta) == expected
    assert config.timestep_spacing == (policy.timestep_spacing if expected[1] else None)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("ddim-50", "flow_euler"),
        ("lcm-4", "flow_euler"),
        ("unipc-4", "flow_euler"),
        ("fk-2@4", "flow_euler"),
        ("sag-4", "flow_euler"),
        ("oracle-stop@euler-4", "ddim"),
    ],
)
def test_a_baseline_of_another_kind_of_model_is_one_line(name: str, solver: SolverName) -> None:
    with pytest.raises(
        UserError, match=f"evaluation.baselines='{name}': accepted with engine.solver={solver}"
    ):
        check_baselines(("dpmpp-10", name), EngineConfig(solver=solver))


def test_config_hash_tells_every_option_apart() -> None:
    base = EngineConfig(solver="ddim")
    changed: dict[str, Any] = {
        "solver": "dpmpp",
        "eta": 0.5,
        "guidance_rule": "none",
        "actions": ("continue", "stop"),
        "timestep_spacing": "trailing",
        "timesteps": tuple(range(base.num_steps - 1, -1, -1)),
        "flow_shift": 2.0,
        "stop_from": 0.5,
        "refine_region": "grid",
        "refine_head": "head.safetensors",
    }
    hashes = {config_hash(base)}
    for field in fields(base):
        value = getattr(base, field.name)
        if field.name not in changed:
            changed[field.name] = value * 0.75 if isinstance(value, float) else value + 1
        one: dict[str, Any] = {field.name: changed[field.name]}
        hashes.add(config_hash(replace(base, **one)))
    assert len(hashes) == len(fields(base)) + 1
    assert config_hash(EngineConfig(solver="ddim")) == config_hash(base)
