"""Gates: what each decides from, and that nothing that was not measured passes."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.errors import UserError
from evaluation.gates import (
    Gate,
    better_than_ddim_20,
    gates,
    memory_gate,
    quality_at_nfe,
    training_gate,
    transfer_gate,
)
from evaluation.hypotheses import refinement_beats_steps
from evaluation.rows import IMAGES_FILE, ImageRow, MethodTable, tabulate, write_rows
from evaluation.statistics import Resampling
from evaluation.transfer import TransferCell
from tests.evaluation import synthetic


def iterations(**changed: Any) -> list[dict[str, Any]]:
    return [
        {
            "iteration": index,
            "episodes": 96,
            "seconds": 6.0,
            "value_loss": 1.0 / index,
            "actions": {"continue": 0.6, "stop": 0.4},
            **changed,
        }
        for index in range(1, 21)
    ]


@pytest.mark.parametrize(
    ("changed", "passed", "advice"),
    [
        ({}, True, "go on"),
        ({"value_loss": 1.0}, False, "learning rate"),
        ({"actions": {"continue": 0.99, "stop": 0.01}}, False, "degenerate"),
        ({"seconds": 1000.0}, False, "too slow"),
    ],
)
def test_training(changed: dict[str, Any], passed: bool, advice: str) -> None:
    gate = training_gate(iterations(**changed))
    assert gate.passed is passed
    assert advice in gate.next_step


def test_an_iteration_is_judged_by_64_episodes() -> None:
    """899 s for 96 episodes are 599 s for 64."""
    assert training_gate(iterations(seconds=899.0)).passed
    assert not training_gate(iterations(seconds=902.0)).passed


def test_what_was_not_measured_is_not_passed() -> None:
    summary, rows = synthetic.evaluation(0.7, prompts_per_tier=6)
    unmeasured = [
        memory_gate(summary),
        training_gate([]),
        better_than_ddim_20(rows, summary),
        transfer_gate([]),
        transfer_gate([TransferCell("own", "ddim-7", "shapes", True, clip_ratio=(1.0, 1.0, 1.0))]),
        transfer_gate([TransferCell("other", "ddim-7", "shapes", False, failed="widths")]),
    ]
    assert [gate.passed for gate in unmeasured] == [None] * 6
    assert all(gate.number == "" and gate.next_step for gate in unmeasured)


@pytest.mark.parametrize(("peak", "passed"), [(34.9, True), (35.1, False)])
def test_memory(peak: float, passed: bool) -> None:
    assert memory_gate({"config": {"peak_gpu_gib": peak}}).passed is passed


def with_ddim_20(quality: float, clip_score: float | None = None) -> tuple[list[ImageRow], dict[str, Any]]:
    summary, rows = synthetic.evaluation(0.6, prompts_per_tier=10)
    wanted = synthetic.requests(10)
    rng = np.random.default_rng(3)
    theirs = [
        replace(row, clip_score=None if clip_score is None else clip_score + rng.normal(0, 0.001))
        for row in synthetic.baseline_rows("ddim-20", wanted, 20, quality)
    ]
    ours = [replace(row, clip_score=0.3) if clip_score is not None else row for row in rows]
    return [*ours, *theirs], summary


def test_better_than_ddim_20_on_any_metric_is_enough() -> None:
    assert better_than_ddim_20(*with_ddim_20(0.5)).passed
    assert not better_than_ddim_20(*with_ddim_20(0.7)).passed
    assert "of 2 metrics, without clip_score)" in better_than_ddim_20(*with_ddim_20(0.5)).number
    gate = better_than_ddim_20(*with_ddim_20(0.7, clip_score=0.28))
    assert "of 3 metrics)" in gate.number
    assert gate.passed
    assert gate.number.startswith("clip_score +0.020")


def test_g2_resamples_within_tiers_as_the_tables_do() -> None:
    """A difference that is the same for all prompts of a tier, and another in each, has no spread within."""
    rows, summary = with_ddim_20(0.5)
    tier_of = {row.key: float(row.tier or 0) for row in rows}
    leads = [
        replace(row, quality=tier_of[row.key] if row.method == "policy" else 0.0, image_reward=0.0)
        for row in rows
        if row.method in ("policy", "ddim-20")
    ]
    gate = better_than_ddim_20(leads, summary)
    assert gate.interval == "+2.500 to +2.500"


@pytest.mark.parametrize(
    ("nfe", "ci95", "advice"),
    [(33.0, [0.0, 0.02], "close"), (45.0, [0.0, 0.02], "far"), (12.0, [-0.2, -0.1], "not held")],
)
def test_where_h1_failed_the_gate_says_how(nfe: float, ci95: list[float], advice: str) -> None:
    h1 = {"passed": False, "nfe": nfe, "nfe_ci95": [nfe, nfe], "ci95": ci95, "margin": 0.01}
    gate = quality_at_nfe({"hypotheses": {"H1": h1}})
    assert gate.passed is False
    assert advice in gate.next_step


def cell(name: str, p: float | None, low: float = 0.96, own: bool = False) -> TransferCell:
    return TransferCell(name, "ddim-7", "shapes", own, clip_ratio=(0.98, low, 1.0), clip_p=p)


@pytest.mark.parametrize(("p", "passed"), [(0.024, True), (0.026, False)])
def test_transfer_is_decided_on_another_backbone(p: float, passed: bool) -> None:
    gate = transfer_gate([cell("own", 0.001, own=True), cell("other", p)])
    assert gate.passed is passed
    assert "98.0% on other" in gate.number


def test_one_transfer_cell_of_many_has_to_be_surer() -> None:
    """Of ten cells without any effect the best has p < .025 in one matrix of five: Holm."""
    assert transfer_gate([cell("other", 0.02)]).passed
    many = [cell("other", 0.02), *(cell(f"{number}", 0.5) for number in range(9))]
    assert not transfer_gate(many).passed
    gate = transfer_gate([*many, cell("sure", 0.0001)])
    assert gate.passed
    assert "on sure (p = 0.001 of 11 cells)" in gate.number


def test_a_matrix_of_an_earlier_version_is_not_measured() -> None:
    gate = transfer_gate([cell("other", None)])
    assert gate.passed is None
    assert "addiffusion transfer" in gate.next_step


def tables(**qualities: tuple[float, float]) -> dict[str, MethodTable]:
    """Name to NFE and quality; "_" stands for the sign that a keyword cannot have."""
    wanted = synthetic.requests(10)
    names = {"refine": "refine@7", "longer": "dpmpp-9", "same": "dpmpp-7", "more": "dpmpp-10"}
    return {
        names[key]: tabulate(key, synthetic.baseline_rows(names[key], wanted, int(nfe), quality), wanted)
        for key, (nfe, quality) in qualities.items()
    }


def test_refinement_is_compared_with_as_many_steps_and_no_others() -> None:
    resampling = Resampling(40, 1000)
    better = tables(refine=(9, 0.7), longer=(9, 0.6), same=(7, 0.9), more=(10, 0.9))
    result = refinement_beats_steps(better, resampling)
    assert (result["against"], result["passed"]) == ("dpmpp-9", True)
    assert result["estimate"] == pytest.approx(0.1, abs=0.03)
    assert not refinement_beats_steps(tables(refine=(9, 0.6), longer=(9, 0.7)), resampling)["passed"]
    unpaired = refinement_beats_steps(tables(refine=(9, 0.7), same=(7, 0.6), more=(10, 0.6)), resampling)
    assert unpaired["passed"] is None
    assert "refine@7 and dpmpp-9" in unpaired["statement"]


def test_all_nine_of_a_run(tmp_path: Path) -> None:
    summary, rows = synthetic.evaluation(0.66, prompts_per_tier=8)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    write_rows(tmp_path / IMAGES_FILE, rows)
    found = gates(tmp_path)
    assert [gate.name for gate in found] == ["G0", "G1", "G2", "G3", "G4", "H1", "H2", "H3", "H4"]
    by_name: dict[str, Gate] = {gate.name: gate for gate in found}
    for name in ("H1", "H2", "H3"):
        assert by_name[name].passed is summary["hypotheses"][name]["passed"]
    assert by_name["G3"].passed is by_name["H1"].passed
    assert json.dumps([asdict(gate) for gate in found])


def test_a_run_that_was_not_evaluated_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="addiffusion evaluate"):
        gates(tmp_path)
