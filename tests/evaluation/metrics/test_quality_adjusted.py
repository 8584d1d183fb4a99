"""Quality-adjusted NFE on curves whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics.quality_adjusted import families, quality_adjusted
from evaluation.rows import MethodTable
from evaluation.statistics import Resampling

PROMPTS, SEEDS = 80, 3


def table(name: str, nfe: float, quality: float, noise: float = 0.05) -> MethodTable:
    rng = np.random.default_rng(list(name.encode()))
    prompt_P1 = np.random.default_rng(7).normal(0, 0.2, (PROMPTS, 1))
    own_PS = rng.normal(0, noise, (PROMPTS, SEEDS)) if noise else np.zeros((PROMPTS, SEEDS))
    quality_PS = prompt_P1 - prompt_P1.mean() + own_PS - own_PS.mean() + quality
    nfe_PS = np.full((PROMPTS, SEEDS), nfe)
    zeros_PS = np.zeros((PROMPTS, SEEDS))
    return MethodTable(name, quality_PS, nfe_PS, 2 * nfe_PS, zeros_PS, nfe_PS, 0.01 * nfe_PS)


def resampling(resamples: int = 2_000) -> Resampling:
    return Resampling(PROMPTS, resamples)


def test_it_is_where_the_curve_crosses_the_targets_quality() -> None:
    """Between 10 NFE at 0.5 and 20 NFE at 0.7, 0.65 is at 17.5 NFE; all prompts shift together."""
    family = [table("dpmpp-10", 10, 0.5, 0.0), table("dpmpp-20", 20, 0.7, 0.0)]
    found = quality_adjusted(family, table("ddim-50", 50, 0.65, 0.0), resampling())
    assert found.value == pytest.approx(17.5)
    assert (found.low, found.high) == pytest.approx((17.5, 17.5)), "nothing differs between resamples"
    assert found.reached == 1.0
    assert found.target == pytest.approx(0.65)
    evaluations = quality_adjusted(family, table("ddim-50", 50, 0.65, 0.0), resampling(), "network_evals")
    assert evaluations.value == pytest.approx(35.0)


def test_a_family_above_the_target_costs_what_its_cheapest_costs() -> None:
    found = quality_adjusted([table("policy", 12, 0.9)], table("ddim-50", 50, 0.6), resampling())
    assert (found.value, found.low, found.high, found.reached) == pytest.approx((12.0, 12.0, 12.0, 1.0))


def test_a_family_that_never_gets_there_has_no_number() -> None:
    found = quality_adjusted([table("policy", 12, 0.3)], table("ddim-50", 50, 0.6), resampling())
    assert (found.value, found.low, found.high, found.reached) == (None, None, None, 0.0)


def test_a_family_that_gets_there_in_half_of_the_resamples_has_no_upper_end() -> None:
    family = [table("lcm-4", 4, 0.4), table("lcm-8", 8, 0.6)]
    found = quality_adjusted(family, table("ddim-50", 50, 0.6), resampling())
    assert 0.3 < found.reached < 0.7
    assert found.high is None
    assert found.low is not None
    assert 4 <= found.low <= 8


def test_the_interval_covers_what_the_delta_method_says() -> None:
    """A straight curve of slope 0.02 a call: the cost is as uncertain as the difference over the slope."""
    family = [table("a-10", 10, 0.5, 0.0), table("a-30", 30, 0.9, 0.0)]
    target = table("ddim-50", 50, 0.7, 0.2)
    difference_P = (target.quality_PS - family[0].quality_PS).mean(1)
    error = difference_P.std(ddof=1) / np.sqrt(PROMPTS) / 0.02
    found = quality_adjusted(family, target, resampling(10_000))
    assert found.value == pytest.approx(20.0)
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.08)


def test_families_are_the_same_method_at_several_budgets() -> None:
    names = ("policy", "ddim-20", "ddim-50", "best-of-2@5", "best-of-3@5", "best-of-2@10", "sag")
    found = families({name: table(name, 10, 0.5) for name in names})
    assert {name: [table.name for table in tables] for name, tables in found.items()} == {
        "policy": ["policy"],
        "ddim": ["ddim-20", "ddim-50"],
        "best-of@5": ["best-of-2@5", "best-of-3@5"],
        "best-of@10": ["best-of-2@10"],
        "sag": ["sag"],
    }
