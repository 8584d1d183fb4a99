"""A replica of the rewards service: one Ray actor that hosts the scorers of a pool behind a micro-batcher.

Always true: a replica that dies, or hangs and ends itself, is started again by Ray, with its scorers loaded
anew and nothing remembered; the calls it held fail, and their clients send them again. It holds no more
images than its pool's `max_queued`: those of further calls stay in the object store of whoever sent them.
Replicas share nothing.
"""

from __future__ import annotations

import faulthandler
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from rewards_service.batcher import MicroBatcher
from rewards_service.contracts import Images, Scorer, Scores
from rewards_service.image_budget import ImageBudget
from rewards_service.metrics import ReplicaMetrics
from rewards_service.pool_config import PoolConfig
from rewards_service.scoring import output_sources, score_batch
from rewards_service.within_memory import WithinMemory

BuildScorers = Callable[[], Sequence[Scorer]]
RATE_WINDOW_S = 10.0
REMEMBERED = 1024
"""How many of the latest calls and batches the statistics are of."""
_STDERR = 2


@dataclass(frozen=True)
class PoolSpec:
    """All that a replica has to know, and whoever starts another one like it.

    build: loads the scorers, in the replica; identity: names the reward models, references scored by others
    are not reused; config: with replicas, cpus and gpus given.
    """

    name: str
    identity: str
    build: BuildScorers
    config: PoolConfig
    torch_threads: int = 1


@dataclass(frozen=True)
class ReplicaStats:
    """A replica since it was last started.

    queue: images that are scored or wait now; most_queued: at most so far; batch_size: images that a scorer
    sees at a time at most, less than configured once memory was short; images_per_s: over the last
    RATE_WINDOW_S; p50_ms: from a call's arrival to its answer, of the last REMEMBERED, 0 if there were none.
    """

    pid: int
    queue: int
    most_queued: int
    batch_size: int
    images: int
    calls: int
    batches: int
    images_per_s: float
    p50_ms: float
    retries: int


class RewardActor:
    """The actor's class; `rewards_service.service.start` makes replicas of it."""

    def __init__(self, service: str, spec: PoolSpec, index: int) -> None:
        self._spec = spec
        self._metrics = ReplicaMetrics(service, spec.name, index)
        if restarts := restarts_of(ray.get_runtime_context().get_actor_id()):
            self._metrics.restarted(restarts)
        self._mistake: ValueError | None = None
        scorers: Sequence[Scorer] = ()
        try:
            scorers = spec.build()
            self._sources = output_sources(scorers)
        except ValueError as mistake:  # kept for whoever asks: a constructor's error names no option
            self._mistake = mistake
        if torch := sys.modules.get("torch"):  # Scorers without torch do not wait for its import.
            torch.set_num_threads(spec.torch_threads)
        self._scorers = [WithinMemory(scorer, spec.config.batch_size) for scorer in scorers]
        self._budget = ImageBudget(spec.config.max_queued)
        self._batcher = MicroBatcher(
            partial(self._run, spec.config.batch_timeout_s),
            max_images=spec.config.batch_size,
            on_batch=self._count_batch,
        )
        self._latencies_s: deque[float] = deque(maxlen=REMEMBERED)
        self._scored: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)
        self._retries = 0

    async def score(
        self,
        stored: Sequence[Any],
        prompts: Sequence[str],
        outputs: Sequence[str] | None = None,
        attempt: int = 0,
    ) -> Scores:
        """Scores one call, together with whatever else is queued.

        stored: one reference to the images, in a list so that they come when there is room for them and not
        before; attempt: how often the call was sent and lost before.
        """
        arrived = time.monotonic()
        if attempt:
            self._retries += 1
            self._metrics.retried()
        try:
            async with self._budget.room(len(prompts)):
                self._metrics.queued(self._budget.held)
                images: Images = await stored[0]
                scores = await self._batcher.score(images, prompts, outputs)
        finally:
            self._metrics.queued(self._budget.held)
        seconds = time.monotonic() - arrived
        self._latencies_s.append(seconds)
        self._metrics.answered(seconds)
        return scores

    async def sources(self) -> dict[str, str]:
        """Which scorer gives which output; answering also says that this replica is up."""
        if self._mistake is not None:
            raise self._mistake
        return self._sources

    async def spec(self) -> PoolSpec:
        """What this replica was made of."""
        return self._spec

    async def stats(self) -> ReplicaStats:
        """How it is doing."""
        counts, now = self._batcher.stats, time.monotonic()
        recent = [(at, images) for at, images in self._scored if now - at <= RATE_WINDOW_S]
        window_s = RATE_WINDOW_S
        if len(recent) == REMEMBERED:
            window_s = max(now - recent[0][0], 1e-3)
        return ReplicaStats(
            pid=os.getpid(),
            queue=self._budget.held,
            most_queued=self._budget.most_held,
            batch_size=min(scorer.batch_size for scorer in self._scorers) if self._scorers else 0,
            images=counts.images,
            calls=counts.calls,
            batches=counts.batches,
            images_per_s=sum(images for _, images in recent) / window_s,
            p50_ms=1000 * statistics.median(self._latencies_s) if self._latencies_s else 0.0,
            retries=self._retries,
        )

    def _run(
        self, timeout_s: float, images: Images, prompts: list[str], outputs: tuple[str, ...] | None
    ) -> Scores:
        with ended_if_it_hangs(timeout_s):
            return score_batch(self._scorers, images, prompts, outputs)

    def _count_batch(self, images: int) -> None:
        self._scored.append((time.monotonic(), images))
        self._metrics.batch(images)


@contextmanager
def ended_if_it_hangs(timeout_s: float) -> Iterator[None]:
    """Ends this process if the block runs longer, with every thread's traceback in its log.

    The clock runs in C: code that hangs without giving the interpreter lock back is ended too.
    """
    faulthandler.dump_traceback_later(timeout_s, exit=True, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def restarts_of(actor_id: str) -> int:
    """How often Ray has started an actor again, from its own table.

    Ray's public state API has the number too, but needs a dashboard.
    """
    table: dict[str, Any] = ray._private.state.actors(actor_id=actor_id) or {}
    return int(table.get("NumRestarts", 0))
