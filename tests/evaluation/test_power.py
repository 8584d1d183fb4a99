"""Power against simulated studies, the textbook's formula, and a pilot whose variances are known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from evaluation.power import (
    Variation,
    detectable_difference,
    non_inferiority_power,
    power_of,
    prompts_needed,
    variation_of,
)
from evaluation.statistics import Floats, Resampling

PLAIN = Variation(between_prompts=0.04, within_prompt=0.09)


def studies(variation: Variation, difference: float, prompts: int, seeds: int, count: int) -> Floats:
    """[count, prompts]: mean differences of simulated studies."""
    rng = np.random.default_rng(prompts)
    own = rng.normal(difference, np.sqrt(variation.between_prompts), (count, prompts, 1))
    return (own + rng.normal(0, np.sqrt(variation.within_prompt), (count, prompts, seeds))).mean(2)


def test_a_detectable_difference_is_found_by_the_bootstrap_in_four_of_five_studies() -> None:
    difference = detectable_difference(PLAIN, prompts=60, seeds=3)
    found = [
        Resampling(60, resamples=1_000, seed=index).mean(study_P).p < 0.05
        for index, study_P in enumerate(studies(PLAIN, difference, 60, 3, 600))
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)  # three standard errors


@pytest.mark.parametrize(("prompts", "seeds", "difference"), [(5, 1, 0.4), (20, 3, 0.15), (100, 2, 0.05)])
def test_power_is_how_often_students_test_rejects(prompts: int, seeds: int, difference: float) -> None:
    p = scipy.stats.ttest_1samp(studies(PLAIN, difference, prompts, seeds, 20_000), 0.0, axis=1).pvalue
    assert power_of(difference, PLAIN, prompts, seeds) == pytest.approx(np.mean(p < 0.05), abs=0.011)
    assert power_of(-difference, PLAIN, prompts, seeds) == pytest.approx(
        power_of(difference, PLAIN, prompts, seeds)
    )


@pytest.mark.parametrize("prompts", [2, 3, 4, 6, 11])
def test_a_handful_of_prompts_shows_only_large_differences(prompts: int) -> None:
    difference = detectable_difference(PLAIN, prompts, 3)
    p = scipy.stats.ttest_1samp(studies(PLAIN, difference, prompts, 3, 20_000), 0.0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.011)


@pytest.mark.parametrize("errors", [0.1, 8.0, 10.0, 37.0, 60.0, 1e4])
def test_no_difference_is_too_large_for_the_power(errors: float) -> None:
    for prompts in (2, 5, 200, 5_000):
        power = power_of(errors * PLAIN.standard_error(prompts, 3), PLAIN, prompts, 3)
        assert 0.05 <= power <= 1.0


def test_many_prompts_give_the_textbooks_formula() -> None:
    expected = (scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)) * PLAIN.standard_error(5_000, 3)
    assert detectable_difference(PLAIN, 5_000, 3) == pytest.approx(expected, rel=1e-3)


def test_power_without_a_difference_is_the_error_rate() -> None:
    assert power_of(0.0, PLAIN, 30, 3) == pytest.approx(0.05)
    assert power_of(0.0, PLAIN, 30, 3, alpha=0.01) == pytest.approx(0.01)


def test_seeds_help_until_only_prompts_differ() -> None:
    by_seeds = [detectable_difference(PLAIN, 200, seeds) for seeds in (1, 3, 10, 1_000)]
    assert by_seeds == sorted(by_seeds, reverse=True)
    alone = detectable_difference(Variation(PLAIN.between_prompts, 0.0), 200, 1)
    assert by_seeds[-1] == pytest.approx(alone, rel=0.01)


def test_prompts_needed_are_just_enough() -> None:
    for difference in (0.02, 0.1, -0.5):
        needed = prompts_needed(difference, PLAIN, seeds=3)
        assert power_of(difference, PLAIN, needed, 3) >= 0.8
        assert needed == 2 or power_of(difference, PLAIN, needed - 1, 3) < 0.8
    with pytest.raises(ValueError, match="more than 10,000,000 prompts"):
        prompts_needed(1e-9, PLAIN, seeds=3)


def test_methods_that_never_differ_need_no_images() -> None:
    nothing = Variation(0.0, 0.0)
    assert detectable_difference(nothing, 2, 1) == 0.0
    assert power_of(1e-6, nothing, 2, 1) == 1.0
    assert power_of(0.0, nothing, 2, 1) == pytest.approx(0.05)


def test_non_inferiority_power_is_how_often_the_bootstrap_claims_it() -> None:
    margin = 0.1
    claimed = [
        Resampling(60, resamples=1_000, seed=index).non_inferiority(study_P, margin).passed
        for index, study_P in enumerate(studies(PLAIN, 0.0, 60, 3, 600))
    ]
    assert np.mean(claimed) == pytest.approx(non_inferiority_power(margin, PLAIN, 60, 3), abs=0.06)
    assert non_inferiority_power(margin, PLAIN, 60, 3, difference=-margin) == pytest.approx(0.025)


def test_a_pilots_variances_are_those_it_was_made_with() -> None:
    rng = np.random.default_rng(3)
    pilot = 0.3 + rng.normal(0, 0.2, (4_000, 1)) + rng.normal(0, 0.3, (4_000, 4))
    found = variation_of(pilot)
    assert found.between_prompts == pytest.approx(0.04, rel=0.1)
    assert found.within_prompt == pytest.approx(0.09, rel=0.05)
    error = scipy.stats.sem(pilot.mean(1))
    assert found.standard_error(4_000, 4) == pytest.approx(error, rel=1e-9)


def test_a_pilot_with_one_seed_counts_all_variance_as_the_prompts() -> None:
    found = variation_of([[0.0], [1.0], [2.0]])
    assert (found.between_prompts, found.within_prompt) == (1.0, 0.0)
