"""The table of a sweep against what can be computed by hand, and its files as others read them."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from tests.tune_configs.outcomes import finished, spec_of, sweep_of
from tune_configs.ledger import Ledger, Outcome, is_done, read_outcomes
from tune_configs.plan import TrialSpec
from tune_configs.results import best_variants, table
from tune_configs.tables import CSV, HEADERS, LATEX, MARKDOWN, write_results

PROMPTS = 40
RNG = np.random.default_rng(5)
QUALITY = RNG.uniform(0.2, 0.9, PROMPTS)
COST = RNG.uniform(5.0, 15.0, PROMPTS)


def outcomes_of(*found: Outcome) -> dict[str, Outcome]:
    return {outcome.spec.id: outcome for outcome in found}


def test_differences_are_paired_by_prompt_and_by_training_seed() -> None:
    """The other variant is better by the same everywhere, so its difference has no spread at all."""
    sweep = sweep_of(["full", "other"])
    specs = [spec_of(name, seed) for name in ("full", "other") for seed in (0, 1)]
    outcomes = outcomes_of(
        finished(specs[0], list(QUALITY), list(COST)),
        finished(specs[1], list(QUALITY[::-1]), list(COST)),
        finished(specs[2], list(QUALITY + 0.05), list(COST - 2.0)),
        finished(specs[3], list(QUALITY[::-1] + 0.05), list(COST - 2.0)),
    )
    full, other = table(sweep, specs, outcomes)
    assert full.is_reference
    assert full.difference is None
    assert other.difference is not None
    assert other.difference.value == pytest.approx(0.05 + 2.0 * 0.005)
    assert other.difference.ci95 == pytest.approx([0.06, 0.06])
    assert other.p_holm is not None
    assert 0.0 < other.p_holm < 0.01, "one comparison, and no resample on the other side"
    assert full.numbers["quality"] == pytest.approx(QUALITY.mean())
    assert full.numbers["utility"] == pytest.approx(QUALITY.mean() - 0.005 * COST.mean())
    assert full.seed_sd == pytest.approx(0.0)
    # The 95% interval of a mean over prompts, in which noises and training seeds were averaged first.
    by_prompt = (QUALITY + QUALITY[::-1]) / 2 - 0.005 * COST
    half = 1.96 * by_prompt.std() / np.sqrt(PROMPTS)
    assert full.interval == pytest.approx((by_prompt.mean() - half, by_prompt.mean() + half), abs=0.12 * half)


def test_only_seeds_that_both_have_finished_are_compared() -> None:
    sweep = sweep_of(["full", "other"])
    specs = [spec_of(name, seed) for name in ("full", "other") for seed in (0, 1)]
    outcomes = outcomes_of(
        finished(specs[0], list(QUALITY), list(COST)),
        finished(specs[1], list(QUALITY + 0.5), list(COST)),
        Outcome(specs[2], "failed", error="RuntimeError: no more"),
        finished(specs[3], list(QUALITY), list(COST)),
    )
    other = table(sweep, specs, outcomes)[1]
    assert other.difference is not None
    assert other.difference.value == pytest.approx(-0.5)
    assert other.status == "1 of 2 finished, 1 of 2 failed"
    assert other.errors == ("RuntimeError: no more",)


def test_one_training_under_two_names_is_one_comparison() -> None:
    """Holm multiplies the smallest of two p-values by two, not by three."""
    noise = RNG.normal(0.0, 0.1, (2, PROMPTS))
    specs = [spec_of("full"), spec_of("one", 0, "alias"), spec_of("two")]
    outcomes = outcomes_of(
        finished(specs[0], list(QUALITY), list(COST)),
        finished(specs[1], list(QUALITY + 0.03 + noise[0]), list(COST)),
        finished(specs[2], list(QUALITY + noise[1]), list(COST)),
    )
    rows = {
        row.variant: row
        for row in table(sweep_of(["full", "one", "alias", "two"], seeds=[0]), specs, outcomes)
    }
    one, alias, two = (rows[name] for name in ("one", "alias", "two"))
    assert one.difference == alias.difference
    assert one.difference is not None
    assert two.difference is not None
    smaller = min(one.difference.p, two.difference.p)
    assert min(one.p_holm or 0, two.p_holm or 0) == pytest.approx(min(2 * smaller, 1.0))
    assert one.p_holm == alias.p_holm


def test_the_best_are_those_that_finished_and_no_training_is_named_twice() -> None:
    sweep = sweep_of(["full", "good", "alias", "bad", "half"], seeds=[0])
    specs = [spec_of("full"), spec_of("good", 0, "alias"), spec_of("bad"), spec_of("half")]
    outcomes = outcomes_of(
        finished(specs[0], list(QUALITY), list(COST)),
        finished(specs[1], list(QUALITY + 0.2), list(COST)),
        finished(specs[2], list(QUALITY - 0.2), list(COST)),
        Outcome(
            specs[3],
            "stopped",
            iterations=3,
            watched={"utility": 9.0, "quality": 9.0, "nfe": 1.0, "cost": 1.0},
        ),
    )
    rows = table(sweep, specs, outcomes)
    assert [row.variant for row in best_variants(sweep, rows, 2)] == ["good", "full"]
    dearest_last = sweep_of(["full", "good", "alias", "bad", "half"], seeds=[0], metric="cost")
    assert len(best_variants(dearest_last, rows, 9)) == 3


def test_trainings_that_happen_to_measure_the_same_are_two() -> None:
    sweep = sweep_of(["full", "twin"], seeds=[0])
    specs = [spec_of("full"), spec_of("twin")]
    outcomes = outcomes_of(*(finished(spec, list(QUALITY), list(COST)) for spec in specs))
    best = best_variants(sweep, table(sweep, specs, outcomes), 2)
    assert [row.variant for row in best] == ["full", "twin"]


def test_a_row_has_the_values_that_a_population_trained_with_last() -> None:
    sweep = sweep_of(["full"], seeds=[0])
    planned, ended = spec_of("full", lr=1e-4), spec_of("full", lr=3e-4)
    (row,) = table(sweep, [planned], outcomes_of(finished(ended, list(QUALITY), list(COST))))
    assert row.values == {"lr": 3e-4}
    (missing,) = table(sweep, [planned], {})
    assert missing.values == {"lr": 1e-4}


def test_fixed_schedules_stand_beside_the_variants_and_are_none_of_them(tmp_path: Path) -> None:
    sweep = sweep_of(["dear", "cheap"], seeds=[0], fixed=[7, 20])
    fixed = [TrialSpec(f"fixed-dpmpp-{steps}", (f"fixed/dpmpp-{steps}",), 0, (), {}, "") for steps in (7, 20)]
    specs = [*fixed, spec_of("dear", lr=1e-4), spec_of("cheap", lr=2e-4)]
    better = list(QUALITY + 0.3)
    outcomes = outcomes_of(
        finished(specs[0], better, [7.0] * PROMPTS),
        Outcome(specs[1], "failed", error="RuntimeError: no GPU"),
        finished(specs[2], list(QUALITY), list(COST)),
        finished(specs[3], list(QUALITY - 0.1), list(COST - 3)),
    )
    rows = table(sweep, specs, outcomes)
    assert [row.variant for row in rows] == ["dpmpp-7", "dpmpp-20", "dear", "cheap"]
    assert rows[0].difference is None, "only what was trained is compared"
    assert [row.variant for row in best_variants(sweep, rows, 3)] == ["dear", "cheap"], (
        "none to train for long"
    )
    html = write_results(tmp_path, sweep, rows, command="x").read_text()
    pictures = [
        base64.b64decode(found).decode()
        for found in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
    ]
    assert len(pictures) == 2, "schedules have no values, and do not keep the policies' from being drawn"
    assert "fixed schedules" in pictures[0]
    assert "fixed schedules" not in pictures[1]


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [
            value for name, value in attrs if name in ("src", "href") and value and value[:5] != "data:"
        ]


def test_files_hold_the_same_numbers_for_people_and_programs(tmp_path: Path) -> None:
    described = {"description": "100% of <it> & more.", "judge": {"resamples": 10_000}}
    sweep = sweep_of(["full", "no_stop", "broken"], seeds=[0], **described)
    specs = [spec_of("full", lr=1e-4), spec_of("no_stop", lr=2e-4), spec_of("broken", lr=3e-4)]
    error = 'ValueError: {weights} 5% of $1 & <script> | "x"'
    outcomes = outcomes_of(
        finished(specs[0], list(QUALITY), list(COST)),
        finished(specs[1], list(QUALITY + 0.1), list(COST + 1.0)),
        Outcome(specs[2], "failed", error=error),
    )
    rows = table(sweep, specs, outcomes)
    page = write_results(tmp_path, sweep, rows, command="addiffusion tune sweep=told")

    frame = pd.read_csv(tmp_path / CSV, index_col="variant")
    assert list(frame.index) == ["full", "no_stop", "broken"]
    assert frame.loc["no_stop", "difference"] == pytest.approx(0.1 - 0.005)
    assert frame.loc["full", "quality"] == pytest.approx(QUALITY.mean(), abs=1e-12)
    assert frame.loc["broken", "error"] == error
    assert frame.loc["broken", "status"] == "failed"
    assert list(frame["lr"]) == [1e-4, 2e-4, 3e-4]

    lines = (tmp_path / MARKDOWN).read_text().splitlines()
    grid = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    assert {len(row) for row in grid} == {len(HEADERS)}
    assert f"{QUALITY.mean():.4f}" in grid[2][6]
    assert any(error in line for line in lines)

    latex = (tmp_path / LATEX).read_text()
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) == len(HEADERS) - 1 for line in body)
    assert r"no\_stop" in latex
    assert not re.search(r"(?<!\\)[_#$]", latex)
    assert not re.search(r"[<>|~^±]", "".join(body))
    assert r"\textless{} 0.001" in latex

    html = page.read_text()
    reader = Reader()
    reader.feed(html)
    assert reader.tags.count("tr") == 1 + 3
    assert not reader.outside
    assert "script" not in reader.tags
    assert "100% of &lt;it&gt; &amp; more." in html
    figures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
    assert len(figures) == 2, "quality against cost, and parallel coordinates"
    for figure in figures:
        assert ElementTree.fromstring(base64.b64decode(figure)).tag.endswith("svg")


def test_the_ledger_gives_back_what_it_was_told_and_the_last_word_counts(tmp_path: Path) -> None:
    spec = spec_of("full", lr=1e-4)
    ledger = Ledger(tmp_path)
    ledger.add(Outcome(spec, "failed", error="its process died"))
    assert not is_done(ledger.outcomes, spec)
    good = finished(spec, list(QUALITY), list(COST))
    ledger.add(good)
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"spec": {"id": "torn')
    again = Ledger(tmp_path)
    assert again.outcomes == read_outcomes(tmp_path) == {spec.id: good}
    assert is_done(again.outcomes, spec)
    assert not is_done(again.outcomes, replace(spec, key="another configuration"))
