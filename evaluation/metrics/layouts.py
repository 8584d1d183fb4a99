"""Images laid out as GenEval's and T2I-CompBench's own scripts expect them, and what those scripts found.

Always true here: the benchmarks' scripts run unchanged, elsewhere, with detectors of their own; nothing of
theirs is imitated. Their answers come back to the prompt and seed they belong to, each image once; an image
they left out is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.errors import UserError
from actors.files import written_aside
from evaluation.metrics.contracts import Floats, Measured
from evaluation.metrics.images import ImageRecord, ImageSet, decode, encode, read_encoded
from evaluation.statistics import Resampling

_SAMPLE = re.compile(r"(?:^|/)(\d+)/samples/(\d+)\.png$")
_LONGEST_NAME = 255
_UNUSABLE = ("/", "_", "\0")


@dataclass(frozen=True)
class Answered:
    """A benchmark's verdict: the headline number, and the mean of each of its tasks."""

    overall: Measured
    by_task: Mapping[str, float]


def write_geneval(images: ImageSet, metadata: Path, folder: Path) -> int:
    """Lay out FOLDER/00000/metadata.jsonl and FOLDER/00000/samples/0000.png, ...; the number of images.

    metadata is GenEval's evaluation_metadata.jsonl: folder N belongs to its line N, and gets that prompt's
    images by rising seeds (published numbers are of four). Raises UserError for a prompt without images.
    """
    written = 0
    for number, line in enumerate(_metadata(metadata)):
        found = _by_seed(images, line["prompt"], metadata)
        place = folder / f"{number:05}"
        for index, record in enumerate(found):
            _write_png(record, place / "samples" / f"{index:04}.png")
        with written_aside(place / "metadata.jsonl") as aside:
            aside.write_text(json.dumps(line), encoding="utf-8")
        written += len(found)
    return written


def read_geneval(images: ImageSet, metadata: Path, results: Path) -> Answered:
    """What evaluate_images.py wrote of that layout: the share of right images, averaged over the tasks.

    Its interval resamples prompts within their task. Raises UserError if an image is missing.
    """
    lines = _metadata(metadata)
    found: dict[tuple[int, int], bool] = {}
    for number, text in enumerate(results.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(text)
            place = _SAMPLE.search(row["filename"])
            if place is None:
                raise ValueError(row["filename"])
            found[int(place[1]), int(place[2])] = bool(row["correct"])
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{results}, line {number}: not a result of evaluate_images.py") from error
    value_of: dict[tuple[str, int], float] = {}
    means_P, tags_P = [], []
    for index, line in enumerate(lines):
        records = _by_seed(images, line["prompt"], metadata)
        for sample, record in enumerate(records):
            if (index, sample) not in found:
                raise UserError(f"{results}: nothing about {index:05}/samples/{sample:04}.png")
            value_of[record.prompt, record.seed] = float(found[index, sample])
        means_P.append(np.mean([value_of[record.prompt, record.seed] for record in records]))
        tags_P.append(str(line["tag"]))
    return _over_tasks("geneval", images, value_of, means_P, tags_P)


def write_compbench(images: ImageSet, prompts: Path, folder: Path) -> int:
    """Lay out FOLDER/samples/PROMPT_000000.png, ... as T2I-CompBench numbers them; the number of images.

    prompts is one of its files, a prompt a line (what follows a tab is left out), such as color_val.txt; the
    benchmark's numbers are of ten seeds. Raises UserError for a prompt without images, or one that its
    scripts cannot read back from a file's name.
    """
    written = 0
    for prompt in _compbench_prompts(prompts):
        for record in _by_seed(images, prompt, prompts):
            _write_png(record, folder / "samples" / _compbench_name(prompt, written))
            written += 1
    return written


def read_compbench(images: ImageSet, prompts: Path, result: Path) -> Answered:
    """What one of its scripts wrote as vqa_result.json, say of annotation_blip: the mean over images."""
    try:
        rows = json.loads(result.read_text(encoding="utf-8"))
        answers = [float(row["answer"]) for row in sorted(rows, key=lambda row: int(row["question_id"]))]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{result}: not a vqa_result.json of T2I-CompBench") from error
    records = [each for prompt in _compbench_prompts(prompts) for each in _by_seed(images, prompt, prompts)]
    if len(answers) != len(records):
        raise UserError(f"{result}: {len(answers)} answers for {len(records)} images")
    value_of = {(record.prompt, record.seed): value for record, value in zip(records, answers, strict=True)}
    by_prompt: dict[str, list[float]] = {}
    for (prompt, _), value in value_of.items():
        by_prompt.setdefault(prompt, []).append(value)
    means_P = [float(np.mean(values)) for values in by_prompt.values()]
    return _over_tasks("compbench", images, value_of, means_P, [prompts.stem] * len(means_P))


def _over_tasks(
    name: str,
    images: ImageSet,
    value_of: Mapping[tuple[str, int], float],
    means_P: Sequence[float | np.floating[Any]],
    tasks_P: Sequence[str],
) -> Answered:
    """The mean over tasks of the mean over prompts, each prompt the mean of its images."""
    tasks = list(dict.fromkeys(tasks_P))
    inside_PK = np.array([[task == each for task in tasks] for each in tasks_P], dtype=np.float64)
    shares_PK = inside_PK * np.asarray(means_P, dtype=np.float64)[:, None] / inside_PK.sum(0)
    by_task = dict(zip(tasks, shares_PK.sum(0).tolist(), strict=True))
    value = float(np.mean(list(by_task.values())))
    ci95 = None
    if len(means_P) > 1:
        resampling = Resampling(len(means_P), strata_P=tuple(tasks_P))
        replicates_R = resampling.means(shares_PK).sum(1) * len(means_P) / len(tasks)
        interval = resampling.estimate(value, replicates_R)
        ci95 = (interval.low, interval.high)
    scored = [record for record in images.records if (record.prompt, record.seed) in value_of]
    values_N: Floats = np.array([value_of[record.prompt, record.seed] for record in scored])
    per_image_N = values_N if len(scored) == len(images) else None
    return Answered(Measured(name, value, len(scored), ci95, per_image_N), by_task)


def _metadata(path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, text in enumerate(_text(path).splitlines(), 1):
        try:
            line = json.loads(text)
            lines.append({**line, "prompt": str(line["prompt"]), "tag": str(line["tag"])})
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path}, line {number}: give GenEval's metadata, with prompt and tag") from error
    return lines


def _compbench_prompts(path: Path) -> list[str]:
    return [line.split("\t")[0].strip() for line in _text(path).splitlines() if line.strip()]


def _compbench_name(prompt: str, number: int) -> str:
    name = f"{prompt}_{number:06}.png"
    if any(character in prompt for character in _UNUSABLE) or len(name.encode()) > _LONGEST_NAME:
        raise UserError(
            f"{prompt!r}: T2I-CompBench reads prompts from file names; accepted: at most"
            f" {_LONGEST_NAME} bytes without / and _"
        )
    return name


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable text file; give the benchmark's prompts") from error


def _by_seed(images: ImageSet, prompt: str, source: Path) -> list[ImageRecord]:
    found = sorted(
        (record for record in images.records if record.prompt == prompt), key=lambda record: record.seed
    )
    if not found:
        raise UserError(f"{images.name} has no image of {prompt!r}, which {source} asks for")
    return found


def _write_png(record: ImageRecord, path: Path) -> None:
    encoded = read_encoded(record)
    if not encoded.startswith(b"\x89PNG"):
        encoded = encode(decode(encoded, record))
    with written_aside(path) as aside:
        aside.write_bytes(encoded)
