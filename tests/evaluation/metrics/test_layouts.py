"""GenEval's and T2I-CompBench's layouts, read by what their own scripts do with names and folders."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actors.errors import UserError
from evaluation.metrics.images import ImageSet, read_sets
from evaluation.metrics.layouts import read_compbench, read_geneval, write_compbench, write_geneval
from tests.evaluation.metrics.stored import scenes, write_table

TAGS = ("single_object", "single_object", "counting", "counting", "counting")


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    rows = scenes(5, 4)
    (found,) = read_sets(write_table(tmp_path / "images.parquet", {"policy": rows[::-1]}))
    return found


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    prompts = [row["prompt"] for row in scenes(5, 1)]
    lines = [
        {"tag": tag, "include": [{"class": "star", "count": 1}], "prompt": prompt}
        for tag, prompt in zip(TAGS, prompts, strict=True)
    ]
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def genevals_walk(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Files and metadata as evaluate_images.py finds them: digits, metadata.jsonl as one object, samples."""
    found = []
    for subfolder in os.listdir(folder):
        if not (folder / subfolder).is_dir() or not subfolder.isdigit():
            continue
        with (folder / subfolder / "metadata.jsonl").open() as file:
            values = json.load(file)
        for name in os.listdir(folder / subfolder / "samples"):
            if re.match(r"\d+\.png", name):
                found.append((str(folder / subfolder / "samples" / name), values))
    return found


def test_genevals_script_finds_every_image_with_its_own_metadata(
    images: ImageSet, metadata: Path, tmp_path: Path
) -> None:
    assert write_geneval(images, metadata, tmp_path / "laid") == 20
    found = genevals_walk(tmp_path / "laid")
    assert len(found) == 20
    pictures = {(row["prompt"], row["seed"] % 100): row["image"] for row in scenes(5, 4)}
    lines = [json.loads(line) for line in metadata.read_text().splitlines()]
    for name, values in found:
        assert values == lines[int(Path(name).parents[1].name)]
        with Image.open(name) as opened:
            expected = pictures[values["prompt"], int(Path(name).stem)]
            np.testing.assert_array_equal(np.asarray(opened), expected)


def results(folder: Path, right: dict[str, list[int]], path: Path) -> Path:
    """What the script writes, in its order; right: how many of each prompt's samples, by tag."""
    rows = []
    counts: dict[str, int] = {}
    order = sorted({int(Path(name).parents[1].name) for name, _ in genevals_walk(folder)})
    quota = {}
    for number in order:
        tag = TAGS[number]
        quota[number] = right[tag][counts.get(tag, 0)]
        counts[tag] = counts.get(tag, 0) + 1
    for name, values in genevals_walk(folder):
        correct = int(Path(name).stem) < quota[int(Path(name).parents[1].name)]
        rows.append({"filename": name, "tag": values["tag"], "prompt": values["prompt"], "correct": correct})
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_genevals_results_come_back_to_prompt_and_seed(
    images: ImageSet, metadata: Path, tmp_path: Path
) -> None:
    write_geneval(images, metadata, tmp_path / "laid")
    right = {"single_object": [4, 3], "counting": [1, 0, 2]}
    found = read_geneval(images, metadata, results(tmp_path / "laid", right, tmp_path / "results.jsonl"))
    assert found.by_task == pytest.approx({"single_object": 7 / 8, "counting": 3 / 12})
    assert found.overall.value == pytest.approx((7 / 8 + 3 / 12) / 2), "tasks count alike, as in the paper"
    assert found.overall.images == 20
    prompts = [row["prompt"] for row in scenes(5, 1)]
    expected = dict(zip(prompts, (4, 3, 1, 0, 2), strict=True))
    assert found.overall.per_image_N is not None
    for record, value in zip(images.records, found.overall.per_image_N, strict=True):
        assert value == (record.seed % 100 < expected[record.prompt])
    assert found.overall.ci95 is not None
    assert found.overall.ci95[0] < found.overall.value < found.overall.ci95[1]


def test_genevals_missing_results_and_prompts_are_named(
    images: ImageSet, metadata: Path, tmp_path: Path
) -> None:
    write_geneval(images, metadata, tmp_path / "laid")
    path = results(tmp_path / "laid", {"single_object": [4, 3], "counting": [1, 0, 2]}, tmp_path / "r.jsonl")
    lines = [line for line in path.read_text().splitlines() if "00003/samples/0002" not in line]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"nothing about 00003/samples/0002\.png"):
        read_geneval(images, metadata, path)
    path.write_text('{"filename": "elsewhere.png", "correct": true}')
    with pytest.raises(UserError, match=r"line 1: not a result of evaluate_images\.py"):
        read_geneval(images, metadata, path)
    metadata.write_text(metadata.read_text() + json.dumps({"tag": "colors", "prompt": "a cat"}))
    with pytest.raises(UserError, match="policy has no image of 'a cat'"):
        write_geneval(images, metadata, tmp_path / "again")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "color_val.txt"
    path.write_text("".join(f"{row['prompt']}\tseen\n" for row in scenes(5, 1)))
    return path


def test_compbenchs_script_reads_prompt_and_number_back_from_the_names(
    images: ImageSet, prompts: Path, tmp_path: Path
) -> None:
    assert write_compbench(images, prompts, tmp_path / "laid") == 20
    names = os.listdir(tmp_path / "laid" / "samples")
    names.sort(key=lambda name: int(name.split("_")[-1].split(".")[0]))  # as BLIP_vqa.py sorts them
    rows = scenes(5, 4)
    assert [name.split("_")[0] for name in names] == [row["prompt"] for row in rows]
    for name, row in zip(names, rows, strict=True):
        with Image.open(tmp_path / "laid" / "samples" / name) as opened:
            np.testing.assert_array_equal(np.asarray(opened), row["image"])


def test_compbenchs_answers_come_back_to_prompt_and_seed(
    images: ImageSet, prompts: Path, tmp_path: Path
) -> None:
    answers = np.random.default_rng(0).uniform(size=20)
    rows = [{"question_id": index, "answer": f"{value:.4f}"} for index, value in enumerate(answers)]
    path = tmp_path / "vqa_result.json"
    path.write_text(json.dumps(rows[::-1]))
    found = read_compbench(images, prompts, path)
    assert found.overall.value == pytest.approx(answers.mean(), abs=1e-4)
    assert found.by_task == {"color_val": found.overall.value}
    by_key = {(row["prompt"], row["seed"]): value for row, value in zip(scenes(5, 4), answers, strict=True)}
    assert found.overall.per_image_N is not None
    expected = [by_key[record.prompt, record.seed] for record in images.records]
    assert found.overall.per_image_N == pytest.approx(expected, abs=1e-4)
    path.write_text(json.dumps(rows[:-1]))
    with pytest.raises(UserError, match="19 answers for 20 images"):
        read_compbench(images, prompts, path)
    path.write_text("{}")
    with pytest.raises(UserError, match="0 answers for 20 images"):
        read_compbench(images, prompts, path)


@pytest.mark.parametrize("prompt", ["a red/green apple", "snake_case", "long " * 60])
def test_prompts_that_are_no_file_names_are_refused(prompt: str, tmp_path: Path) -> None:
    row = {**scenes(1, 1)[0], "prompt": prompt.strip()}
    (images,) = read_sets(write_table(tmp_path / "images.parquet", {"policy": [row]}))
    (tmp_path / "color_val.txt").write_text(prompt)
    with pytest.raises(UserError, match="T2I-CompBench reads prompts from file names"):
        write_compbench(images, tmp_path / "color_val.txt", tmp_path / "laid")
