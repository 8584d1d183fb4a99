"""The image store: what is in it, and that no image is lost or doubled when processes are killed."""

import functools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from actors.contracts import EpisodeRequest, Images
from actors.errors import UserError
from evaluation.baselines import parse_baseline
from evaluation.bench import Bench
from evaluation.config import EvaluationConfig
from evaluation.evaluate import images_of
from evaluation.generate import Job, Workers, generate, jobs_of, run_jobs
from evaluation.methods import BaselineMethod
from evaluation.rows import ImageRow
from evaluation.store import ImageStore, read_png
from tests.evaluation.fakes import ENGINE, FakeBackbone, judge, open_fake_bench

REQUESTS = [EpisodeRequest(f"prompt {index}", 100 + index, "1", category="Art") for index in range(40)]
CONFIG = EvaluationConfig(slots=2, workers=1)
PARTS = len(REQUESTS) // (4 * CONFIG.slots)


def method(name: str = "dpmpp-3") -> BaselineMethod:
    baseline = parse_baseline(name)
    return BaselineMethod(baseline, baseline.engine_config(ENGINE))


def test_what_comes_out_is_what_was_made(tmp_path: Path) -> None:
    store, bench = ImageStore(tmp_path, "bench"), open_fake_bench()
    made = generate(bench, Job(method(), tuple(REQUESTS[:6]), slots=3))
    store.add(method(), made.rows, made.episodes, made.images_BHWC)
    assert store.known(method(), REQUESTS) == list(made.rows)
    images = dict(store.images(method(), REQUESTS))
    for row, image in zip(made.rows, made.images_BHWC, strict=True):
        np.testing.assert_array_equal(images[row.key], image)
    (part,) = store.path(method()).iterdir()
    for record, episode in zip(pq.read_table(part).to_pylist(), made.episodes, strict=True):
        assert [one[0] for one in json.loads(record["decisions"])] == [
            one.action for one in episode.decisions
        ]
        assert read_png(record["png"]).shape == (8, 8, 3)
    assert {row.category for row in made.rows} == {"Art"}


def test_rows_are_labelled_as_they_are_asked_for(tmp_path: Path) -> None:
    store, bench = ImageStore(tmp_path, "bench"), open_fake_bench()
    made = generate(bench, Job(method(), tuple(REQUESTS[:2]), slots=3))
    store.add(method(), made.rows, made.episodes, made.images_BHWC)
    asked = [replace(REQUESTS[1], tier="9", category=None)]
    (row,) = store.known(method(), asked)
    assert (row.key, row.tier, row.category) == (made.rows[1].key, "9", None)


def test_other_methods_options_and_benches_share_nothing(tmp_path: Path) -> None:
    store, bench = ImageStore(tmp_path, "bench"), open_fake_bench()
    made = generate(bench, Job(method(), tuple(REQUESTS[:2]), slots=3))
    store.add(method(), made.rows, made.episodes, made.images_BHWC)
    changed = BaselineMethod(method().baseline, replace(method().engine, guidance_scale=1.5))
    assert store.known(changed, REQUESTS) == []
    assert store.known(method("dpmpp-4"), REQUESTS) == []
    assert ImageStore(tmp_path, "other").known(method(), REQUESTS) == []


def test_a_damaged_part_is_one_line(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, "bench")
    folder = store.path(method())
    folder.mkdir(parents=True)
    (folder / "part-0.parquet").write_bytes(b"torn")
    with pytest.raises(UserError, match="part-0"):
        store.known(method(), REQUESTS)


def make_until_killed(folder: Path, writes: int) -> None:
    """Makes all images, but kills its own process in the middle of writing a part."""
    whole = pq.write_table
    done = 0

    def torn(table: Any, path: Path, *args: Any, **kwargs: Any) -> None:
        nonlocal done
        whole(table, path, *args, **kwargs)
        if done == writes:
            content = Path(path).read_bytes()
            Path(path).write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1

    pq.write_table = torn
    images_of([method()], REQUESTS, ImageStore(folder, "bench"), open_fake_bench, CONFIG)


def test_killed_while_writing_it_goes_on_without_a_lost_or_doubled_image(tmp_path: Path) -> None:
    code = f"from tests.evaluation.test_store import *; make_until_killed(Path({str(tmp_path)!r}), 2)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -signal.SIGKILL
    store, bench = ImageStore(tmp_path, "bench"), open_fake_bench()
    assert len(store.known(method(), REQUESTS)) == 2 * 4 * CONFIG.slots
    (rows,), reused = images_of([method()], REQUESTS, store, lambda: bench, CONFIG)
    assert reused == 16
    assert isinstance(bench.backbone, FakeBackbone)
    assert bench.backbone.rows_denoised == 3 * (len(REQUESTS) - 16), "what was whole is not made again"
    check_complete(rows, store)
    (never_killed,), _ = images_of([method()], REQUESTS, ImageStore(tmp_path, "x"), lambda: bench, CONFIG)
    assert [replace(row, seconds=0) for row in rows] == [replace(row, seconds=0) for row in never_killed]


def check_complete(rows: Sequence[ImageRow], store: ImageStore) -> None:
    """Every image once, in what is reported and in what is stored."""
    wanted = Counter((request.prompt, request.seed) for request in REQUESTS)
    assert Counter(row.key for row in rows) == wanted
    parts = [part for part in store.path(method()).iterdir() if not part.name.startswith(".")]
    stored = [(one["prompt"], one["seed"]) for part in parts for one in pq.read_table(part).to_pylist()]
    assert Counter(stored) == wanted


def open_deadly_bench(marker: Path) -> Bench:
    """The fake bench, whose metric kills its process at the third batch, once for all processes."""
    calls = 0

    def deadly(images: Images, prompts: Sequence[str]) -> NDArray[np.float32]:
        nonlocal calls
        calls += 1
        if calls == 3:
            try:
                marker.touch(exist_ok=False)
            except FileExistsError:
                return judge(images, prompts)
            os.kill(os.getpid(), signal.SIGKILL)
        return judge(images, prompts)

    return replace(open_fake_bench(), judge=deadly)


@pytest.mark.slow
def test_an_actor_of_the_pool_is_killed_and_another_makes_what_it_had(
    tmp_path: Path, ray_session: None
) -> None:
    store, marker = ImageStore(tmp_path / "store", "bench"), tmp_path / "killed"
    jobs = jobs_of(method(), REQUESTS, CONFIG.slots)
    assert len(jobs) == PARTS == 5
    reported = list(run_jobs(functools.partial(open_deadly_bench, marker), jobs, Workers(2), store))
    assert marker.exists()
    rows = [row for _, made in reported for row in made]
    for job, made in reported:
        assert [row.key for row in made] == [(one.prompt, one.seed) for one in job.requests]
    check_complete(rows, store)
    assert {row.category for row in rows} == {"Art"}
