"""`addiffusion metrics`: a table with everything in it, and mistakes in one line."""

from __future__ import annotations

import json
import shutil
from html import unescape
from pathlib import Path

import pytest

from evaluation.config import EvaluationConfig
from evaluation.evaluate import evaluate
from evaluation.metrics.config import METRIC_NAMES
from tests.cluster.conftest import Say
from tests.evaluation.fakes import open_fake_bench, saved_policy
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


def test_of_a_run_the_images_it_compared_are_measured_and_its_report_says_so(say: Say, folder: Path) -> None:
    """They lie beside the runs, with those of another run's policy."""
    bench, runs = open_fake_bench(), folder / "runs"
    config = EvaluationConfig(
        prompts_per_tier=2, seeds=2, baselines=("ddim-50", "dpmpp-4"), resamples=200, slots=4, workers=1
    )
    summaries = [
        evaluate(
            saved_policy(runs / name / "policy", seed), runs / name, config, recipe=lambda *_: lambda: bench
        )
        for seed, name in enumerate(("one", "two"))
    ]
    code, out, err = say("metrics", "runs/two", "evaluation.metrics.names=[nfe,clip_score,fid]")
    assert (code, "error" in err) == (0, False), err
    assert out.splitlines()[-2:] == [
        "numbers: runs/two/evaluation/metrics/metrics.json",
        "report: runs/two/report.html",
    ]
    found = json.loads((runs / "two/evaluation/metrics/metrics.json").read_text())["methods"]
    costs = {name: one["nfe"]["value"] for name, one in found.items()}
    told = summaries[1]["baselines"] | {"policy": summaries[1]["policy"]}
    assert costs == pytest.approx({name: one["nfe"] for name, one in told.items()})
    assert {one["nfe"]["images"] for one in found.values()} == {4 * 2 * 2}
    report = unescape((runs / "two/report.html").read_text())
    assert "Metrics of the images" in report
    assert f"{found['policy']['clip_score']['value']:.4g} (" in report
    assert f"missing fid: {found['policy']['fid']['missing']}" in report
    assert "Metrics of the images" in (runs / "two/evaluation/tables/metrics.md").read_text()

    shutil.rmtree(runs / "images")
    code, _, err = say("metrics", "runs/two")
    assert code == 2
    assert "16 images of 'policy' are gone" in err
    assert "run `addiffusion evaluate` again" in err


def test_mistakes_are_one_line(say: Say, folder: Path) -> None:
    write_table(folder / "images.parquet", {"m": scenes(1, 1)})
    for arguments, message in (
        (
            ("evaluation.seeds=1",),
            "IMAGES: give an evaluated run's folder, Parquet tables or folders of images",
        ),
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
