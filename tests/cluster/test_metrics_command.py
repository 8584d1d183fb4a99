"""`addiffusion metrics`: a table with everything in it, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

from evaluation.metrics.config import METRIC_NAMES
from tests.cluster.conftest import Say
from tests.evaluation.metrics.stored import scenes, write_table


def test_all_metrics_are_printed_measured_or_missing_with_a_reason(say: Say, folder: Path) -> None:
    right = [{**row, "nfe": 10} for row in scenes(4, 2)]
    write_table(folder / "images.parquet", {"right": right, "wrong": scenes(4, 2, wrong=True)})
    code, out, err = say("metrics", "images.parquet", "evaluation.metrics.cmmd=null", "--out", "numbers")
    assert (code, "error" in err) == (0, False)
    lines = out.splitlines()
    assert lines[0].split() == ["metric", "right", "wrong"]
    table = {line[:21].strip(" ↑↓"): line for line in lines[1 : 1 + len(METRIC_NAMES)]}
    assert len(table) == len(METRIC_NAMES)
    assert table["Verifier"].split()[2] == "1"
    assert table["FID"].split()[-2:] == ["missing", "missing"]
    assert table["NFE"].split()[-1] == "missing"
    assert "missing hps_v2, pick_score: the embedded world has no such model; name one" in out
    assert "missing nfe: wrong has images without 'nfe'" in out
    assert lines[-1] == "numbers: numbers/metrics.json"
    stored = json.loads((folder / "numbers" / "metrics.json").read_text())
    assert set(stored["methods"]) == {"right", "wrong"}


def test_mistakes_are_one_line(say: Say, folder: Path) -> None:
    write_table(folder / "images.parquet", {"m": scenes(1, 1)})
    for arguments, message in (
        (("evaluation.seeds=1",), "IMAGES: give Parquet tables or folders of images"),
        (("nowhere",), "nowhere: no such file or folder"),
        (
            ("images.parquet", "evaluation.metrics.names=[fdi]"),
            "evaluation.metrics.names='fdi': give",
        ),
        (
            ("images.parquet", "evaluation.metrics.resize=dirty"),
            "evaluation.metrics.resize='dirty': give",
        ),
    ):
        code, out, err = say("metrics", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"error: {message}"), err
