"""How fast the rewards service is: what merging calls gains, and what a lone caller pays for it.

The scorer takes 30 ms a batch, whatever its size, as a GPU that is not full does; so what is measured is the
service and nothing else. Always true here: both services serve the same calls of the same callers, and each
answer is compared with what its images' brightness is.
"""

from __future__ import annotations

import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import ray

from rewards_service import service
from rewards_service.actor import PoolSpec
from rewards_service.client import ActorClient
from rewards_service.contracts import Images, Scorer, Scores
from rewards_service.pool_config import PoolConfig

CALLERS = 8
SCORING_MS = 30.0
SIDE = 64


class FixedTime:
    """The mean of each image, after SCORING_MS milliseconds a batch."""

    name = "fixed_time"
    outputs: tuple[str, ...] = ("brightness",)

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """`brightness` [N]."""
        time.sleep(SCORING_MS / 1000)
        return {"brightness": images.mean(axis=(1, 2, 3), dtype=np.float32)}


def fixed_time_scorers() -> list[Scorer]:
    """What each replica hosts."""
    return [FixedTime()]


def measure(*, calls: int, images: int) -> dict[str, float]:
    """All numbers, on the Ray that is connected.

    speedup: calls a second of CALLERS concurrent callers over those where each call is a batch; p50_ms: of a
    lone caller; p50_over_scoring: that over SCORING_MS; images_per_s: of the concurrent callers.
    """
    with _pool(batch_size=CALLERS * images) as connect:
        p50_ms = 1000 * statistics.median(_latencies_s(connect(), calls, images))
        merged = _calls_per_s(connect, calls, images)
    with _pool(batch_size=images) as connect:
        single = _calls_per_s(connect, calls, images)
    return {
        "callers": CALLERS,
        "calls_per_caller": calls,
        "images_per_call": images,
        "scoring_ms": SCORING_MS,
        "speedup": merged / single,
        "p50_ms": p50_ms,
        "p50_over_scoring": p50_ms / SCORING_MS,
        "images_per_s": merged * images,
        "calls_per_s": merged,
        "calls_per_s_one_call_a_batch": single,
    }


@contextmanager
def _pool(batch_size: int) -> Iterator[Callable[[], ActorClient]]:
    """One replica of its own."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    config = PoolConfig(replicas=1, cpus=0.5, gpus=0.0, batch_size=batch_size, max_queued=4096)
    replicas = service.start(name, [PoolSpec("bench", "bench", fixed_time_scorers, config)])
    try:
        yield lambda: service.connect(name)
    finally:
        for replica in replicas:
            ray.kill(replica)


def _calls_per_s(connect: Callable[[], ActorClient], calls: int, images: int) -> float:
    clients = [connect() for _ in range(CALLERS)]
    together = threading.Barrier(CALLERS + 1)

    def work(client: ActorClient) -> None:
        _latencies_s(client, 2, images)
        together.wait()
        _latencies_s(client, calls, images)

    with ThreadPoolExecutor(CALLERS) as threads:
        working = [threads.submit(work, client) for client in clients]
        together.wait()
        started = time.perf_counter()
        for each in working:
            each.result()
        return CALLERS * calls / (time.perf_counter() - started)


def _latencies_s(client: ActorClient, calls: int, images: int) -> list[float]:
    """Seconds of each of so many calls, one after the other."""
    seconds = []
    for call in range(calls):
        level = call % 256
        batch = np.full((images, SIDE, SIDE, 3), level, np.uint8)
        started = time.perf_counter()
        scores = client.score(batch, [""] * images)
        seconds.append(time.perf_counter() - started)
        assert (scores["brightness"] == level).all(), "an answer belongs to another call"
    return seconds
