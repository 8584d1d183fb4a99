"""`addiffusion bench update`: operations counted by hand against torch's count, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from cluster import cli
from evaluation import update_benchmark


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_benchmark, "MINIBATCHES", (64, 512))
    monkeypatch.setattr(update_benchmark, "EPISODES", 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


@pytest.mark.usefixtures("small")
def test_the_numbers_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "update.json"
    arguments = ["bench", "update", "--decisions", "100", "--repeats", "1", "--json", str(out)]
    assert cli.run(arguments) == 0
    report = json.loads(out.read_text())
    assert (report["decisions"], report["width"], report["epochs"]) == (100, 1672, 4)
    assert set(report["minibatches"]) == {"64", "512"}
    for size, numbers in report["minibatches"].items():
        assert all(math.isfinite(value) and value > 0 for value in numbers.values())
        assert numbers["gflop_predicted"] == pytest.approx(numbers["gflop_counted"], rel=1e-6)
        # Whole minibatches around 100 decisions and the ends of 8 episodes, four times.
        assert numbers["gradient_steps"] == math.ceil(4 * 108 / int(size))
    printed = capsys.readouterr().out
    assert "gflop_counted" in printed
    assert "load_before" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("update", "--decisions", "0"), "--decisions=0: give a whole number from 64"),
        (("update", "--repeats", "0"), "--repeats=0: give a whole number from 1"),
        (("update", "--json", "no/such.json"), "--json=no/such.json: give a file in a folder that exists"),
        (("scaling", "--slots", "1"), "--slots=1: give a whole number from 2"),
        (("scaling", "--iterations", "1"), "--iterations=1: give a whole number from 2"),
        (("scaling", "--env-runners", "8,0"), "--env-runners=8,0: give whole numbers from 1"),
        (("scaling", "--env-runners", "8,x"), "--env-runners=8,x: give whole numbers from 1"),
        (("scaling", "--algorithms", "dqn"), "algorithm.name='dqn': give one of ppo, appo, reinforce"),
        (("scaling", "--reward", "raw"), "--reward='raw': give one of outcome, balanced"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
