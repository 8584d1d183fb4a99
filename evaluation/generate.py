"""Images: methods over requests, in this process or in several, into graded rows.

Always true here: requests are cut into the same chunks whatever the number of processes, so rows do not
depend on it (their seconds do). The clock runs over everything a user would wait for, from text encoding to
the decoded image, and not over grading. Each process has one thread and opens the bench once.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from actors.contracts import EpisodeRequest, EpisodeResult, Images
from actors.rollout import rollout
from evaluation.bench import Bench
from evaluation.methods import Method
from evaluation.rows import ImageRow

CHUNK_SLOTS = 4
"""Requests of a chunk, in fillings of the slots: enough that slots running dry at its end matter little."""


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
    open_bench: Callable[[], Bench], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, tuple[ImageRow, ...]]]:
    """Rows of every job, as they get ready. With one worker they are made here, without a new process."""
    if workers == 1 or len(jobs) < 2:
        bench = open_bench()
        for job in jobs:
            yield job, generate(bench, job).rows
        return
    executor = ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), _start_worker, (open_bench,)
    )
    try:
        futures: dict[Future[tuple[ImageRow, ...]], Job] = {
            executor.submit(_rows_in_worker, job): job for job in jobs
        }
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def generate(bench: Bench, job: Job) -> Generated:
    """Run one job on one thread, and grade its images."""
    method = job.method.open(bench)
    prompts = [request.prompt for request in job.requests]
    with _one_thread():
        start = time.perf_counter()
        episodes = rollout(
            method.engine,
            method.decider,
            method.observer,
            job.requests,
            slots=job.slots,
            scorer=method.scorer,
            record_previews=job.record_previews,
        )
        images_BHWC = _decode(bench, episodes, job.slots)
        seconds = (time.perf_counter() - start) / len(episodes)
        quality_B = bench.judge(images_BHWC, prompts)
        image_reward_B = bench.scorer("image_reward")(images_BHWC, prompts)["image_reward"]
    rows = tuple(
        ImageRow(
            method=job.method.name,
            prompt=episode.request.prompt,
            tier=episode.request.tier,
            seed=episode.request.seed,
            quality=float(quality),
            image_reward=float(image_reward),
            nfe=episode.nfe,
            network_evals=episode.network_evals,
            looks=episode.looks,
            attempts=episode.attempts,
            cost=episode.cost,
            seconds=seconds,
            actions=tuple(decision.action for decision in episode.decisions),
        )
        for episode, quality, image_reward in zip(episodes, quality_B, image_reward_B, strict=True)
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


_opened: Bench | None = None
"""The bench of a worker process, from its start to its end."""


def _start_worker(open_bench: Callable[[], Bench]) -> None:
    global _opened
    torch.set_num_threads(1)
    _opened = open_bench()


def _rows_in_worker(job: Job) -> tuple[ImageRow, ...]:
    assert _opened is not None
    return generate(_opened, job).rows
