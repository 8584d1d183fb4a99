"""The curriculum: which requests are drawn how often, against the closed form."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from actors.orders import iteration_requests
from learner.curriculum import CurriculumConfig, Focus, Phase, by_difficulty, focus
from tune_configs.loading import compose

HARDEST_FIRST = (4, 1, 2, 0, 7, 6, 5, 3)


def test_the_lowest_quality_is_the_hardest_and_ties_keep_their_order() -> None:
    assert by_difficulty([3.0, 1.0, 2.0, 9.0, 0.5, 8.0, 7.0, 6.0]) == HARDEST_FIRST
    assert by_difficulty([1.0, 0.0, 1.0, 0.0]) == (1, 3, 0, 2)


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0.75, 1.0, 8, [0, 1]),
        (0.75, 1.0, 7, [0]),
        (0.75, 1.0, 1, [0]),
        (0.0, 0.25, 8, [6, 7]),
        (0.0, 1.0, 3, [0, 1, 2]),
        (0.8, 0.9, 10, [1]),
        (0.5, 0.51, 4, [1]),
    ],
)
def test_quantiles_count_from_the_easiest_and_hold_at_least_one(
    low: float, high: float, count: int, expected: list[int]
) -> None:
    config = CurriculumConfig((Phase(1.0, low, high),))
    assert list(focus(config, range(count), 0, 10).requests) == expected


def test_quantiles_that_touch_share_no_request_and_leave_none_out() -> None:
    for count in range(3, 60):
        bounds = (0.0, 0.3333, 0.6667, 0.9, 1.0)
        parts = [
            focus(CurriculumConfig((Phase(1.0, low, high),)), range(count), 0, 1).requests
            for low, high in itertools.pairwise(bounds)
        ]
        if all(count * (high - low) >= 1 for low, high in itertools.pairwise(bounds)):
            assert sorted(index for part in parts for index in part) == list(range(count))


def test_hard_first_is_the_worst_quarter_with_half_of_the_episodes_fading_until_six_tenths() -> None:
    config = compose(["curriculum=hard_first"]).run.curriculum
    for iteration in range(80):
        drawn = focus(config, HARDEST_FIRST, iteration, 80)
        assert drawn.share == 0.5 * max(1.0 - iteration / 48.0, 0.0), "to the last bit"
        assert drawn.requests == ((4, 1) if iteration < 48 else ())


def test_easy_first_widens_from_the_easiest_third_to_all() -> None:
    config = compose(["curriculum=easy_first"]).run.curriculum
    ranks = range(300)
    assert focus(config, ranks, 0, 100) == focus(config, ranks, 24, 100) == Focus(tuple(range(200, 300)), 1.0)
    assert (
        focus(config, ranks, 25, 100) == focus(config, ranks, 59, 100) == Focus(tuple(range(100, 300)), 1.0)
    )
    assert focus(config, ranks, 60, 100) == focus(config, ranks, 99, 100) == Focus()


def test_a_phase_begins_where_the_one_before_it_ends() -> None:
    config = CurriculumConfig((Phase(0.2, share_start=0.8, share_end=0.4), Phase(0.6, 0.5, 1.0, 0.4, 0.0)))
    shares = [focus(config, HARDEST_FIRST, iteration, 10).share for iteration in range(10)]
    assert shares == pytest.approx([0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0])


@pytest.mark.parametrize("iteration", [0, 30, 50])
def test_requests_are_drawn_as_often_as_the_schedule_says(iteration: int) -> None:
    """share / |focus| for those in the focus, and (1 - share) / n for all; chi-squared at 1 in 10,000."""
    count, episodes = 40, 20_000
    config = compose(["curriculum=hard_first"]).run.curriculum
    hardest_first = tuple(np.random.default_rng(1).permutation(count).tolist())
    drawn = focus(config, hardest_first, iteration, 80)
    pairs = iteration_requests(
        count, iteration, episodes, seed=2, focus=drawn.requests, focus_share=drawn.share
    )
    taken = Counter(index for _, index in pairs)
    expected = np.full(count, (1.0 - drawn.share) / count)
    expected[list(drawn.requests)] += drawn.share / max(len(drawn.requests), 1)
    assert expected.sum() == pytest.approx(1.0)
    assert chisquare([taken[index] for index in range(count)], expected * episodes).pvalue > 1e-4
    assert len(set(pairs)) == len(pairs), "no episode is run twice"
