"""`addiffusion bench scaling`: the ideal by hand, and a small real run against it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cluster import cli
from evaluation import scaling_benchmark
from evaluation.scaling_benchmark import DENOISING_S, SCORING_S, STEPS, ideal_seconds


@pytest.mark.parametrize("reward", ["outcome", "balanced"])
def test_the_ideal_is_the_denoisers_time_and_the_last_score(reward: str) -> None:
    """Two groups in turns hide all scoring behind the other one's denoising, but that of the last image."""
    calls = 2 * STEPS * 3
    assert ideal_seconds(slots=4, rounds=3, reward=reward) == pytest.approx(calls * DENOISING_S + SCORING_S)


def test_one_group_waits_for_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring that takes longer than a denoiser call is not hidden any more."""
    monkeypatch.setattr(scaling_benchmark, "SCORING_S", 3 * DENOISING_S)
    waiting = ideal_seconds(slots=4, rounds=3, reward="balanced")
    assert waiting > 2 * STEPS * 3 * DENOISING_S + 3 * DENOISING_S


def test_the_numbers_are_printed_and_written(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling_benchmark, "FEATURES", 4)
    out = tmp_path / "scaling.json"
    arguments = ["bench", "scaling", "--env-runners", "1", "--algorithms", "ppo", "--slots", "2"]
    assert cli.run([*arguments, "--rounds", "1", "--iterations", "2", "--json", str(out)]) == 0
    (report,) = json.loads(out.read_text())["runs"]
    numbers = [value for value in report.values() if isinstance(value, float)]
    assert all(math.isfinite(value) for value in numbers)
    assert report["ideal_episodes_per_s"] == pytest.approx(2 / ideal_seconds(2, 1, "outcome"))
    assert 0.0 < report["of_ideal"] < 1.05
    assert report["of_ideal"] == pytest.approx(report["episodes_per_s"] / report["ideal_episodes_per_s"])
    assert {"driver", "env runners", "scorers"} <= set(report["cpu_ms"])
    printed = capsys.readouterr().out
    assert "of_ideal" in printed
    assert "cpu_ms driver" in printed
