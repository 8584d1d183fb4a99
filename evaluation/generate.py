"""Images: methods over requests, in this process or in several, into graded rows.

Always true here: requests are cut into the same chunks whatever the number of processes, so rows do not
depend on it (their seconds do). The clock runs over everything a user would wait for, from text encoding to
the decoded image, and not over grading. Each process has one thread and opens the bench once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from actors.contracts import EpisodeRequest, EpisodeResult, Images
from evaluation.bench import Bench
from evaluation.config import EvaluationConfig
from evaluation.methods import Method
from evaluation.rows import ImageRow
from evaluation.store import ImageStore

CHUNK_SLOTS = 4
"""Requests of a chunk, in fillings of the slots: enough that slots running dry at its end matter little."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Who makes the images: `count` processes of one thread each, on a Ray cluster or this machine.

    address: a running cluster's; None starts one here. gpus: what Ray reserves for each.
    """

    count: int = 1
    address: str | None = None
    gpus: float = 0.0

    @classmethod
    def of(cls, config: EvaluationConfig) -> Workers:
        """As an evaluation's options say."""
        gpus = config.worker_gpus if config.device.startswith("cuda") else 0.0
        return cls(config.workers, config.address, gpus)


@dataclass(frozen=True)
class Job:
    """A chunk of one method's requests."""

    method: Method
    requests: tuple[EpisodeRequest, ...]
    slots: int
    record_previews: bool = False


@dataclass(frozen=True)
class Generated:
    """A job's results, in the order of its requests."""

    job: Job
    rows: tuple[ImageRow, ...]
    episodes: tuple[EpisodeResult, ...]
    images_BHWC: Images


def jobs_of(method: Method, requests: Sequence[EpisodeRequest], slots: int) -> list[Job]:
    """A method's requests in chunks."""
    size = CHUNK_SLOTS * slots
    return [
        Job(method, tuple(requests[start : start + size]), slots) for start in range(0, len(requests), size)
    ]


def run_jobs(
    open_bench: Callable[[], Bench],
    jobs: Sequence[Job],
    workers: Workers,
    store: ImageStore | None = None,
) -> Iterator[tuple[Job, tuple[ImageRow, ...]]]:
    """Rows of every job, as they get ready; what is ready is in the store.

    With one worker they are made here, without Ray; with several by a pool of Ray actors (see pool.py).
    """
    if not jobs:
        return
    if workers.count == 1 or len(jobs) == 1:
        bench = open_bench()
        for job in jobs:
            yield job, make_and_keep(bench, job, store)
        return
    from evaluation.pool import run_in_pool  # Ray: not needed where one process is enough

    yield from run_in_pool(open_bench, jobs, workers, store)


def make_and_keep(bench: Bench, job: Job, store: ImageStore | None) -> tuple[ImageRow, ...]:
    """One job's rows; its images are in the store before anybody hears of them."""
    made = generate(bench, job)
    if store is not None:
        store.add(job.method, made.rows, made.episodes, made.images_BHWC)
    return made.rows


def generate(bench: Bench, job: Job) -> Generated:
    """Run one job on one thread, and grade its images."""
    method = job.method.open(bench)
    prompts = [request.prompt for request in job.requests]
    with _one_thread():
        start = time.perf_counter()
        episodes = method.run(job.requests, slots=job.slots, record_previews=job.record_previews)
        images_BHWC = _decode(bench, episodes, job.slots)
        seconds = (time.perf_counter() - start) / len(episodes)
        quality_B = bench.judge(images_BHWC, prompts)
        outputs = tuple(name for name in (bench.finished, "clip_score") if name in bench.outputs)
        scores = bench.scorer(*outputs)(images_BHWC, prompts)
    rows = tuple(
        ImageRow(
            method=job.method.name,
            prompt=episode.request.prompt,
            tier=episode.request.tier,
            seed=episode.request.seed,
            quality=float(quality),
            image_reward=float(scores[bench.finished][index]),
            nfe=episode.nfe,
            network_evals=episode.network_evals,
            looks=episode.looks,
            attempts=episode.attempts,
            cost=episode.cost,
            seconds=seconds,
            actions=tuple(decision.action for decision in episode.decisions),
            clip_score=float(scores["clip_score"][index]) if "clip_score" in scores else None,
            category=episode.request.category,
        )
        for index, (episode, quality) in enumerate(zip(episodes, quality_B, strict=True))
    )
    return Generated(job, rows, tuple(episodes), images_BHWC)


def _decode(bench: Bench, episodes: Sequence[EpisodeResult], batch: int) -> Images:
    latents_BCHW = torch.stack([episode.latents_CHW for episode in episodes])
    return np.concatenate([bench.backbone.decode(latents) for latents in torch.split(latents_BCHW, batch)])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
