"""The gate: who gets through, who does not, and what it measures on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.engine import EngineConfig
from actors.errors import UserError
from actors.policy_folder import read_trained_policy
from evaluation.baselines import parse_baseline
from evaluation.bench import BenchRecipe, held_out_recipe
from evaluation.evaluate import evaluation_requests
from evaluation.held_out import (
    MARGIN,
    Verdict,
    against_champion,
    against_schedules,
    gate_baselines,
    held_out_config,
    requests_key,
    utilities,
)
from evaluation.rows import MethodTable, tabulate
from evaluation.statistics import Resampling
from rewards_service.arithmetic import HELD_OUT_PRICE
from shapes.captions import split_of
from tests.evaluation.fakes import saved_policy
from tests.evaluation.synthetic import BASELINES, baseline_rows, requests


def table(lead: float, cost: float, noise: float = 0.0, prompts: int = 80) -> MethodTable:
    """A policy whose quality is .8 + lead, but for noise between prompts that is its own."""
    rng = np.random.default_rng(int(1e6 * noise))
    quality_PS = 0.8 + lead + noise * rng.standard_normal((prompts, 1)) + np.zeros((prompts, 2))
    cost_PS = np.full((prompts, 2), cost)
    return MethodTable("policy", quality_PS, cost_PS, 2 * cost_PS, 0 * cost_PS, cost_PS, cost_PS)


def gate(candidate: MethodTable, champion: MethodTable) -> Verdict:
    return against_champion(candidate, champion, Resampling(len(candidate.nfe_PS)), MARGIN)


def test_utility_is_quality_less_the_price_of_cost() -> None:
    assert utilities(table(0.1, 12.0)) == pytest.approx(np.full(80, 0.9 - 12.0 * HELD_OUT_PRICE))


@pytest.mark.parametrize(
    ("candidate", "promoted"),
    [
        (table(0.05, 10.0), True),
        (table(0.0, 8.0), True),  # as good and cheaper
        (table(0.0, 10.0), True),  # the same
        (table(-0.002, 10.0), False),  # a little worse, within the margin
        (table(0.02, 15.0), False),  # better, at a price that is higher than that
        (table(0.0, 10.0, noise=0.5), False),  # nobody can tell
    ],
)
def test_a_successor_is_not_lower_and_surely_not_much_lower(candidate: MethodTable, promoted: bool) -> None:
    champion = table(0.0, 10.0)
    verdict = gate(candidate, champion)
    assert verdict.promoted is promoted
    mean = float(np.mean(candidate.quality_PS - 0.8) - HELD_OUT_PRICE * (candidate.mean("cost") - 10.0))
    assert verdict.difference.value == pytest.approx(mean)
    assert promoted == (mean >= -1e-12 and verdict.difference.low > -MARGIN)


def test_few_prompts_open_no_gate() -> None:
    verdict = gate(table(0.3, 5.0, prompts=10), table(0.0, 10.0, prompts=10))
    assert not verdict.promoted
    assert "10 prompts show nothing" in verdict.reason


@pytest.mark.parametrize(("lead", "promoted"), [(0.1, True), (0.0, False), (-0.1, False)])
def test_the_first_champion_beats_the_fixed_schedules_of_its_cost(lead: float, promoted: bool) -> None:
    wanted = requests()
    tables = {
        name: tabulate(name, baseline_rows(name, wanted, nfe, quality), wanted)
        for name, (nfe, quality) in BASELINES.items()
    }
    best = tables["dpmpp-10"]
    candidate = replace(best, quality_PS=best.quality_PS + lead)
    strata = tuple(request.tier or "" for request in wanted[::3])
    verdict = against_schedules(candidate, tables, Resampling(len(strata), 1000, 0, strata))
    assert verdict.promoted is promoted
    assert verdict.against == "dpmpp-10"
    assert verdict.difference.value == pytest.approx(lead)


@pytest.mark.parametrize("cost", [3.0, 7.0, 12.0, 33.0])
@pytest.mark.parametrize("solver", ["dpmpp", "ddim", "flow_euler", "lcm"])
def test_schedules_around_the_policys_cost_are_compared_with(solver: str, cost: float) -> None:
    engine = EngineConfig(solver=solver)  # type: ignore[arg-type]
    names = gate_baselines(engine, cost)
    nominal = [parse_baseline(name).attempts * parse_baseline(name).num_steps for name in names]
    assert max(nominal) > cost, "the front goes on beyond the policy"
    assert len(names) >= 2
    solvers = {parse_baseline(name).solver for name in names if "best-of" not in name}
    assert solvers == ({"ddim", "dpmpp"} if solver == "ddim" else {solver})


def test_a_distilled_model_is_compared_with_its_own_sampling() -> None:
    """SDXL Turbo's, ancestral Euler, is DDIM with eta 1; DPM-Solver++ is nothing one would run it with."""
    turbo = EngineConfig(solver="ddim", eta=1.0, timestep_spacing="trailing", num_steps=4)
    own = [
        baseline.engine_config(turbo)
        for baseline in map(parse_baseline, gate_baselines(turbo, 4.0))
        if baseline.family == "ddim"
    ]
    assert {config.num_steps for config in own} == {2, 3, 4, 5}
    assert {(config.solver, config.eta, config.timestep_spacing) for config in own} == {
        ("ddim", 1.0, "trailing")
    }


def test_it_measures_on_validation_prompts_with_a_judge_that_is_no_verifier(tmp_path: Path) -> None:
    trained = read_trained_policy(saved_policy(tmp_path / "policy"))
    with pytest.raises(UserError, match="--prompts: give a file for backbone 'fake'"):
        held_out_config(trained)
    world = replace(trained, backbone=replace(trained.backbone, name="shapes"))
    config = held_out_config(world, seeds=2)
    made = evaluation_requests(config)
    assert {split_of(request.prompt) for request in made} == {"validation"}
    assert len({request.prompt for request in made}) == 80
    recipe = held_out_recipe(world.backbone, config)
    assert isinstance(recipe, BenchRecipe)
    assert recipe.metric == "held-out score"
    assert requests_key(made) == requests_key(evaluation_requests(config))
    assert requests_key(made) != requests_key(evaluation_requests(replace(config, seed=1)))
