"""Failures, stopping times and losses, from rows with a known truth."""

from dataclasses import replace

import pytest

from evaluation.analysis import by_category, by_tier, failures, losses, reference_of, stopping
from evaluation.rows import ImageRow
from tests.evaluation import synthetic

WANTED = synthetic.requests(prompts_per_tier=2, seeds=2)


def rows(quality: float, nfe: int = 10) -> list[ImageRow]:
    return [synthetic.row("policy", request, quality, nfe) for request in WANTED]


def test_failures_are_the_largest_losses_one_a_prompt() -> None:
    ours = rows(0.8)
    for place, quality in ((0, 0.1), (1, 0.2), (5, 0.3), (6, 0.9)):  # 0 and 1 are seeds of one prompt
        ours[place] = replace(ours[place], quality=quality)
    found = failures(ours, rows(0.5), 5)
    assert [(one.row.key, round(one.loss, 6)) for one in found] == [(ours[0].key, 0.4), (ours[5].key, 0.2)]
    assert len(failures(ours, rows(0.5), 1)) == 1
    assert failures(rows(0.8), rows(0.5), 5) == []


def test_the_reference_is_the_best_that_costs_no_more() -> None:
    others = {"cheap": rows(0.5, 5), "equal": rows(0.6, 10), "dear": rows(0.9, 11)}
    assert reference_of(rows(0.7, 10), others) == "equal"
    assert reference_of(rows(0.7, 3), others) == "cheap", "nothing is cheaper: the cheapest"


def test_losses_count_clear_differences_by_group() -> None:
    ours = rows(0.5)
    ours[0] = replace(ours[0], quality=0.3)
    ours[1] = replace(ours[1], quality=0.7)
    ours[2] = replace(ours[2], quality=0.45)
    found = losses(ours, rows(0.5), by_tier)
    assert set(found) == {"1", "2", "3", "4"}
    assert (found["1"].images, found["1"].lost, found["1"].gained) == (4, 0.25, 0.25)
    assert found["1"].difference == pytest.approx(-0.05 / 4)
    assert (found["2"].lost, found["2"].difference) == (0.0, 0.0)


def test_stopping_times_by_category_leave_out_what_has_none() -> None:
    ours = [
        replace(row, nfe=4 + place, category="Animals" if place < 5 else None)
        for place, row in enumerate(rows(0.5))
    ]
    found = stopping(ours, by_category)
    assert set(found) == {"Animals"}
    assert (found["Animals"].images, found["Animals"].nfe) == (5, 6.0)
    assert found["Animals"].quantiles == pytest.approx((4.4, 6.0, 7.6))
