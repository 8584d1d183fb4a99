"""What happens to scores when replicas die, hang, run out of memory or fall behind, on a real Ray.

Each score is a checksum of its image and its prompt: one that is lost, given twice or given to another
image shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from rewards_service import service
from rewards_service.actor import BuildScorers
from rewards_service.client import ActorClient
from rewards_service.contracts import Images
from rewards_service.scoring import ScoringError
from tests.rewards_service.fakes import checksum_scorers, checksums, spec

Call = tuple[Images, list[str]]


@contextmanager
def running(name: str, build: BuildScorers, **options: Any) -> Iterator[Callable[..., ActorClient]]:
    handles = service.start(name, [spec("checksum", build, **options)])
    try:
        yield partial(service.connect, name, deadline_s=60)
    finally:
        for handle in handles:
            ray.kill(handle)


def make_calls(count: int, *faults: str, seed: int = 0, side: int = 8) -> list[Call]:
    """Calls of one to four random images; the first ones have the faulty prompts."""
    rng = np.random.default_rng(seed)
    calls = []
    for index in range(count):
        images = rng.integers(0, 256, (1 + index % 4, side, side, 3), dtype=np.uint8)
        prompts = [f"{seed} {index} {row}" for row in range(len(images))]
        if index < len(faults):
            prompts[-1] += f" {faults[index]}"
        calls.append((images, prompts))
    return calls


def assert_all_scored(client: ActorClient, calls: list[Call]) -> None:
    pending = [client.submit(*call) for call in calls]
    for call, each in zip(calls, pending, strict=True):
        np.testing.assert_array_equal(each.result()["checksum"], checksums(*call))


def restarts(name: str) -> int:
    (pool,) = service.status(name)
    return pool.restarts


def test_a_replica_that_dies_in_a_call_loses_nothing(ray_session: None, tmp_path: Path) -> None:
    with running("dying", partial(checksum_scorers, tmp_path), replicas=2, batch_size=8) as connect:
        clients = [connect() for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            jobs = [
                threads.submit(assert_all_scored, client, make_calls(30, *["die"][seed:], seed=seed))
                for seed, client in enumerate(clients)
            ]
            for job in jobs:
                job.result()
        assert restarts("dying") == 1
        assert sum(client.retries for client in clients) > 0


def test_all_replicas_may_die_at_once(ray_session: None, tmp_path: Path) -> None:
    with running("all", partial(checksum_scorers, tmp_path), replicas=2, batch_size=4) as connect:
        assert_all_scored(connect(), make_calls(40, "die first", "die second"))
        assert restarts("all") == 2


@pytest.mark.parametrize("fault", ["hang", "spin"])
def test_a_replica_that_hangs_is_replaced(ray_session: None, tmp_path: Path, fault: str) -> None:
    """Also where the hanging code keeps Python's interpreter lock, so that the replica cannot even answer."""
    build = partial(checksum_scorers, tmp_path)
    with running(f"hangs-{fault}", build, replicas=2, batch_timeout_s=0.5) as connect:
        assert_all_scored(connect(), make_calls(20, fault))
        assert restarts(f"hangs-{fault}") == 1


def test_a_scorer_that_hangs_for_ever_ends_at_the_deadline(ray_session: None) -> None:
    with running("for-ever", checksum_scorers) as connect:
        client = connect(deadline_s=1.0)
        image = np.zeros((1, 8, 8, 3), np.uint8)
        with pytest.raises(TimeoutError, match="scorer pool 'checksum': no scores of 1 images within 1 s; "):
            client.score(image, ["hang"])


def test_a_service_that_was_stopped_ends_at_the_deadline(ray_session: None) -> None:
    with running("stopped", checksum_scorers) as connect:
        client = connect(deadline_s=1.0)
        service.stop("stopped")
        with pytest.raises(TimeoutError, match=r"pool 'checksum': .*last lost .*ActorDied"):
            client.score(np.zeros((1, 8, 8, 3), np.uint8), ["a"])


def test_a_batch_that_needs_too_much_memory_is_scored_in_smaller_ones(ray_session: None) -> None:
    crowded = [(images, [f"{prompt} crowded" for prompt in prompts]) for images, prompts in make_calls(20)]
    with running("crowded", partial(checksum_scorers, None, 3), batch_size=32) as connect:
        assert_all_scored(connect(), crowded)
        (pool,) = service.status("crowded")
        assert pool.stats[0].batch_size <= 3
        assert pool.restarts == 0
        client, (images, _) = connect(), crowded[3]
        with pytest.raises(ScoringError, match=r"scorer 'checksum' .*no memory for a single image of 8 x 8"):
            client.score(images, ["overfull"] * 4)
        assert_all_scored(client, make_calls(3))


def test_a_replica_never_holds_more_images_than_its_bound(ray_session: None) -> None:
    """Four callers, each with as many images under way as the replica may hold of all of them together."""
    with running("slow", partial(checksum_scorers, None, 100, 2), batch_size=4, max_queued=8) as connect:
        with ThreadPoolExecutor(4) as threads:
            jobs = [
                threads.submit(assert_all_scored, connect(), make_calls(40, seed=seed)) for seed in range(4)
            ]
            for job in jobs:
                job.result()
        (pool,) = service.status("slow")
        assert pool.stats[0].most_queued == 8
        assert pool.stats[0].images == 4 * 10 * (1 + 2 + 3 + 4)


def test_memory_stays_flat(ray_session: None) -> None:
    def score(client: ActorClient, calls: range) -> None:
        rng = np.random.default_rng(calls.start)
        for call in calls:
            images = rng.integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
            prompts = [f"prompt {call} {row}" for row in range(200)]
            scores = client.score(images, prompts)
            np.testing.assert_array_equal(scores["checksum"], checksums(images, prompts))

    with running("flat", checksum_scorers, batch_size=256) as connect:
        client = connect()
        score(client, range(20))
        (pool,) = service.status("flat")
        process = psutil.Process(pool.stats[0].pid)
        warm = process.memory_info().rss
        score(client, range(20, 120))
        assert process.memory_info().rss < 1.05 * warm
