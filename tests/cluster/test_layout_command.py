"""`addiffusion layout`, there and back: what a benchmark's script would write of the images it finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.cli import run
from tests.evaluation.metrics.stored import scenes, write_table

PROMPTS = 3


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_table(
        tmp_path / "images.parquet", {"policy": scenes(PROMPTS, 2), "dpmpp-7": scenes(PROMPTS, 2)}
    )


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation_metadata.jsonl"
    lines = [{"tag": "colors", "prompt": row["prompt"]} for row in scenes(PROMPTS, 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_geneval_there_and_back(
    images: Path, metadata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    laid = tmp_path / "laid"
    common = ["layout", "geneval", str(images), "--prompts", str(metadata), "--method", "policy"]
    assert run([*common, "--out", str(laid)]) == 0
    pictures = sorted(laid.rglob("*.png"))
    assert len(pictures) == PROMPTS * 2
    results = tmp_path / "results.jsonl"
    rows = [{"filename": str(picture), "correct": "/00000/" in str(picture)} for picture in pictures]
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert run([*common, "--results", str(results)]) == 0
    assert capsys.readouterr().out.startswith("policy: 0.333 (95%: 0.")


def test_compbench_names_are_written(images: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "color_val.txt"
    prompts.write_text("".join(f"{row['prompt']}\n" for row in scenes(PROMPTS, 1)))
    arguments = ["layout", "compbench", str(images), "--prompts", str(prompts), "--method", "dpmpp-7"]
    assert run([*arguments, "--out", str(tmp_path / "laid")]) == 0
    names = {path.stem.rpartition("_") for path in (tmp_path / "laid" / "samples").glob("*.png")}
    assert {(prompt, number) for prompt, _, number in names} == {
        (row["prompt"], f"{2 * index + seed:06}")
        for index, row in enumerate(scenes(PROMPTS, 1))
        for seed in range(2)
    }


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "error: give --out FOLDER"),
        (["--out", "x", "--results", "y"], "error: give --out FOLDER"),
        (["--out", "x"], "choose one with --method"),
        (["--out", "x", "--method", "nobody"], "--method=nobody: "),
    ],
)
def test_mistakes_are_one_line(
    more: list[str], told: str, images: Path, metadata: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["layout", "geneval", str(images), "--prompts", str(metadata), *more]) == 2
    message = capsys.readouterr().err
    assert told in message
    assert message.count("\n") == 1
