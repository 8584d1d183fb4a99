"""Several policies at once: each against what fixed schedules reach at its own cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.errors import UserError
from evaluation.bench import Bench
from evaluation.config import EvaluationConfig
from evaluation.evaluate import evaluate
from evaluation.policy_front import (
    FRONT_FILE,
    compare_names,
    front_sentence,
    front_table,
    policy_front,
    write_front,
)
from evaluation.rows import MethodTable, tabulate
from tests.evaluation import synthetic
from tests.evaluation.fakes import ENGINE, FakeBackbone, open_fake_bench, saved_policy

CONFIG = EvaluationConfig(
    prompts_per_tier=6,
    seeds=2,
    baselines=("dpmpp-4", "ddim-6", "oracle-best-of-2@4"),
    resamples=200,
    slots=8,
    workers=1,
)


def fixed(wanted: list[Any]) -> dict[str, MethodTable]:
    return {
        name: tabulate(name, synthetic.baseline_rows(name, wanted, nfe, quality), wanted)
        for name, (nfe, quality) in synthetic.BASELINES.items()
    }


def policy(wanted: list[Any], quality: float, base_nfe: int) -> MethodTable:
    rows = synthetic.policy_rows(wanted, quality, base_nfe=base_nfe, follow=0)
    return tabulate("policy", rows, wanted)


def test_each_policy_is_compared_at_its_own_cost_and_a_front_of_better_ones_is_found_better() -> None:
    """The fixed front stands at .45, .60 and .66 for 5, 10 and 20.6; linear between."""
    wanted = synthetic.requests()
    groups = {
        "cheap": [policy(wanted, 0.62, 7)],
        "dear": [policy(wanted, 0.69, 15)],
        "on the front": [policy(wanted, 0.60, 10)],
    }
    tiers = [request.tier for request in wanted[::3]]
    found = compare_names(groups, fixed(wanted), set(), tiers, replace(CONFIG, seeds=3, resamples=1000))
    policies = found["policies"]
    assert [policies[name]["passed"] for name in groups] == [True, True, False]
    assert policies["cheap"]["cost"] == pytest.approx(7 + synthetic.LOOK_PRICE)
    at_its_cost = np.interp(7, [5, 10], [0.45, 0.60])
    assert policies["cheap"]["lead"]["estimate"] == pytest.approx(0.62 - at_its_cost, abs=0.02)
    assert policies["cheap"]["fixed_needs"] == pytest.approx(10 + 10.6 * (0.02 / 0.06), abs=1.5)
    assert policies["dear"]["fixed_needs"] is None, "no fixed choice gets there"
    for one in policies.values():
        assert one["lead"]["p_holm"] >= one["lead"]["p"]
        assert one["lead"]["p_holm"] <= 3 * one["lead"]["p"] + 1e-12


def test_trainings_of_one_name_are_averaged_and_none_is_chosen() -> None:
    wanted = synthetic.requests()
    tables = [policy(wanted, quality, nfe) for quality, nfe in ((0.70, 9), (0.50, 11))]
    tiers = [request.tier for request in wanted[::3]]
    found = compare_names({"both": tables}, fixed(wanted), set(), tiers, replace(CONFIG, seeds=3))
    both = found["policies"]["both"]
    for column in ("quality", "nfe", "cost"):
        assert both[column] == pytest.approx(np.mean([table.mean(column) for table in tables]))
        assert [one[column] for one in both["trainings"]] == [table.mean(column) for table in tables]
    assert not both["passed"], "the better one alone would have"


def test_a_front_of_one_policy_says_what_its_evaluation_says(tmp_path: Path) -> None:
    bench = open_fake_bench()
    first = saved_policy(tmp_path / "runs/one/policy", 0)
    second = saved_policy(tmp_path / "runs/two/policy", 1)
    summary = evaluate(first, tmp_path / "runs/one", CONFIG, recipe=lambda *_: lambda: bench)
    assert isinstance(bench.backbone, FakeBackbone)
    before = bench.backbone.rows_denoised
    named = {"one": [first]}
    front = policy_front(named, tmp_path / "runs", CONFIG, recipe=lambda *_: lambda: bench)
    assert bench.backbone.rows_denoised == before, "an evaluation's images are found again"
    one, told = front["policies"]["one"], summary["policy"]
    for column in ("quality", "ci95", "nfe", "looks", "cost", "seconds", "per_tier"):
        assert one[column] == told[column]
    h2 = summary["hypotheses"]["H2"]
    assert {key: one["lead"][key] for key in ("estimate", "ci95", "p", "against")} == {
        key: h2[key] for key in ("estimate", "ci95", "p", "against")
    }
    assert one["lead"]["p_holm"] == h2["p"], "one name is a family of one"
    both = policy_front(
        {"one": [first], "two": [second]}, tmp_path / "runs", CONFIG, recipe=lambda *_: lambda: bench
    )
    assert both["policies"]["one"]["quality"] == told["quality"]
    assert both["policies"]["two"]["quality"] != told["quality"]
    assert both["baselines"]["oracle-best-of-2@4"]["bound"]

    write_front(both, tmp_path / "front")
    assert {file.name for file in (tmp_path / "front").iterdir()} == {
        "front.json", "front.md", "front.tex", "front.svg", "front.png"
    }  # fmt: skip
    assert json.loads((tmp_path / "front" / FRONT_FILE).read_text())["policies"].keys() == {"one", "two"}
    lines = front_table(both).markdown().splitlines()
    assert len(lines) == 4 + 2 + 3
    assert "oracle-best-of-2@4 (bound)" in lines[-1]
    assert front_sentence(both).startswith("0 of 2 policies are shown")


def test_policies_whose_fixed_choices_would_differ_are_not_compared(tmp_path: Path) -> None:
    bench: Bench = open_fake_bench()
    usual = saved_policy(tmp_path / "a/policy")
    engine = {**ENGINE.__dict__, "actions": list(ENGINE.actions), "guidance_scale": 1.5}
    guided = saved_policy(tmp_path / "b/policy", engine=engine)
    elsewhere = saved_policy(
        tmp_path / "c/policy", backbone_config={"name": "other", "dtype": "float32", "device": "cpu"}
    )
    for other, message in ((guided, "other guidance"), (elsewhere, "trained on another backbone")):
        with pytest.raises(UserError, match=message):
            policy_front({"a": [usual], "b": [other]}, tmp_path, CONFIG, recipe=lambda *_: lambda: bench)
    with pytest.raises(UserError, match="bounds only"):
        policy_front(
            {"a": [usual]},
            tmp_path,
            replace(CONFIG, baselines=("oracle-best-of-2@4",)),
            recipe=lambda *_: lambda: bench,
        )
