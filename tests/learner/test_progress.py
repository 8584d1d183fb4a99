"""An iteration's row from RLlib's results, the progress file, the live line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from learner.json_lines import read_rows
from learner.progress import clock, format_row, iteration_row, progress_file

RESULTS: dict[str, Any] = {
    "env_runners": {
        "addiffusion": {
            "episodes": 4,
            "decisions": 20,
            "return": 2.0,
            "quality": 3.0,
            "quality_over_reference": -1.0,
            "nfe": 40,
            "nfe_squared": 416,
            "cost": 44,
            "entropy": 10.0,
            "weights_seq_no": 12,
            "previews": 24,
            "seconds": 8.0,
            "denoising_s": 6.0,
            "waiting_s": 1.0,
            "action/continue": 15,
            "action/stop": 4,
            "action/leap-2": 1,
            "score/image_reward": 1.0,
            "reward/quality": 3.0,
            "reward/terminal": -1.0,
        }
    },
    "learners": {"default_policy": {"weights_seq_no": 5, "policy_loss": -0.1, "vf_loss": 0.5}},
}


def test_a_row_holds_the_means_over_all_episodes() -> None:
    row = iteration_row(RESULTS, iteration=4, seconds=2.0)
    assert (row["return"], row["quality"], row["quality_over_reference"]) == (0.5, 0.75, -0.25)
    assert (row["nfe"], row["nfe_std"], row["cost"]) == (10.0, 2.0, 11.0)
    assert row["actions"] == {"continue": 0.75, "stop": 0.2, "leap-2": 0.05}
    assert row["scores"] == {"image_reward": 0.25}
    assert row["reward_parts"] == {"quality": 0.75, "terminal": -0.25}
    assert row["entropy"] == 0.5
    assert (row["denoiser_utilisation"], row["waiting_share"]) == (0.75, 0.125)
    assert row["episodes_per_s"] == 2.0
    assert (row["policy_loss"], row["value_loss"]) == (-0.1, 0.5)


def test_policy_lag_is_the_age_of_the_weights_that_acted() -> None:
    """The learner is at version 5 after the update, so it was at 4; version 3 acted."""
    assert iteration_row(RESULTS, iteration=4, seconds=2.0)["policy_lag"] == 1.0


def test_numbers_of_a_skipped_minibatch_are_left_out_and_said() -> None:
    learner = {"weights_seq_no": 5, "policy_loss": float("nan"), "vf_loss": 0.5, "skipped_updates": 3}
    row = iteration_row({**RESULTS, "learners": {"default_policy": learner}}, iteration=4, seconds=2.0)
    assert row["skipped_updates"] == 3
    assert "policy_loss" not in row
    assert row["value_loss"] == 0.5
    shown = format_row({**row, "phase": "training", "iterations": 9, "time_left_s": 1.0})
    assert "3 updates not finite, skipped" in shown
    learner["skipped_updates"] = 0
    row = iteration_row({**RESULTS, "learners": {"default_policy": learner}}, iteration=4, seconds=2.0)
    assert math.isnan(row["policy_loss"]), "without a skipped minibatch it is an error, and stays one"


def test_an_iteration_without_samples_has_no_means() -> None:
    row = iteration_row({}, iteration=4, seconds=2.0)
    assert row == {"iteration": 4, "seconds": 2.0, "episodes": 0}
    nothing = {"env_runners": {"addiffusion": {"episodes": float("nan"), "return": float("nan")}}}
    assert iteration_row(nothing, iteration=4, seconds=2.0) == row, "all env runners were dead"
    assert "no episode" in format_row(row | {"iterations": 9, "phase": "training"})


def test_the_line_says_what_matters() -> None:
    row = iteration_row(RESULTS, iteration=4, seconds=2.0)
    line = format_row(row | {"iterations": 9, "phase": "training", "time_left_s": 75.0})
    for part in (
        "4/9",
        "return +0.500",
        "NFE 10.0±2.0",
        "continue 75%",
        "entropy 0.50",
        "lag 1.0",
        "1:15 left",
    ):
        assert part in line
    budget = {"target": 9.0, "mean": 10.0, "warning": "reward.target_nfe=9 seems out of reach"}
    steered = {"iterations": 9, "phase": "training", "time_left_s": 75.0, "c_nfe": 0.0312, "budget": budget}
    line = format_row(row | steered)
    assert line.endswith("left (aim 9 at price 0.0312) · reward.target_nfe=9 seems out of reach")
    assert format_row({"phase": "references", "done": 3, "total": 8}) == "references 3/8"


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (61, "1:01"), (3671.6, "1:01:12")])
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_the_file_holds_each_iteration_once_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    file = progress_file(path, next_iteration=1)
    for iteration in (1, 2, 3):
        file.append({"iteration": iteration, "run": "first"})
    with path.open("a") as unfinished:
        unfinished.write('{"iteration": 4, "ru')
    progress_file(path, next_iteration=3).append({"iteration": 3, "run": "second"})
    rows = read_rows(path)
    assert [(row["iteration"], row["run"]) for row in rows] == [(1, "first"), (2, "first"), (3, "second")]
