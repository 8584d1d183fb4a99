from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cluster import cli
from evaluation import scoring_benchmark


def test_the_numbers_are_printed_and_written(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring_benchmark, "CALLERS", 2)
    out = tmp_path / "scoring.json"
    assert cli.run(["bench", "scoring", "--calls", "2", "--images", "3", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert {"speedup", "p50_ms", "images_per_s"} <= set(report)
    assert all(math.isfinite(value) and value > 0 for value in report.values())
    # Each a closed form of the others: the scorer alone takes scoring_ms, and a call has so many images.
    assert report["p50_ms"] >= report["scoring_ms"]
    assert report["images_per_s"] == pytest.approx(3 * report["calls_per_s"])
    assert report["calls_per_s_one_call_a_batch"] <= 1000 / report["scoring_ms"]
    printed = capsys.readouterr().out
    assert all(key in printed for key in report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--calls", "0"), "--calls=0: give a whole number from 1"),
        (("--images", "0"), "--images=0: give a whole number from 1"),
        (
            ("--json", "no/such/folder.json"),
            "--json=no/such/folder.json: give a file in a folder that exists",
        ),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", "scoring", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
