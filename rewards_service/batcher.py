"""Merges concurrent scoring calls into batches, inside one event loop.

Invariants:
- Work never waits for company: a free scorer takes at once whatever is queued, up to `max_images`.
- Size is counted in images.
- Each caller gets exactly its own rows. When a batch fails, its calls are run again one by one, so that
  a poisoned call fails alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from rewards_service.contracts import Images, Scores
from rewards_service.scoring import check_batch

Run = Callable[[Images, list[str], tuple[str, ...] | None], Scores]


@dataclass(frozen=True, eq=False)
class _Call:
    images: Images
    prompts: list[str]
    outputs: tuple[str, ...] | None
    answer: asyncio.Future[Scores]

    def goes_with(self, other: _Call) -> bool:
        """Whether both can share a batch: same image size, same wanted outputs."""
        return self.images.shape[1:] == other.images.shape[1:] and self.outputs == other.outputs


@dataclass
class BatcherStats:
    """What went through a batcher since it was made."""

    calls: int = 0
    images: int = 0
    batches: int = 0
    rerun_alone: int = 0
    """Calls that were run again by themselves after their batch failed."""


class MicroBatcher:
    """Runs `run(images, prompts, outputs)` in one worker thread, on as many calls at a time as fit.

    on_batch is told the images of each batch that was scored.
    """

    def __init__(
        self, run: Run, *, max_images: int = 64, on_batch: Callable[[int], None] | None = None
    ) -> None:
        if max_images < 1:
            raise ValueError(f"max_images: {max_images}; accepted: 1 or more images")
        self._run = run
        self._max_images = max_images
        self._on_batch = on_batch
        self._calls: deque[_Call] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self._worker: asyncio.Task[None] | None = None
        self.stats = BatcherStats()

    async def score(
        self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None
    ) -> Scores:
        """Scores one call's images."""
        check_batch(images, prompts)
        wanted = None if outputs is None else tuple(outputs)
        call = _Call(images, list(prompts), wanted, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await call.answer

    def close(self) -> None:
        """Ends the worker; calls still waiting are cancelled."""
        if self._worker is not None:
            self._worker.cancel()
        for call in self._calls:
            call.answer.cancel()
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        # Ends with the last call: a process that exits while idle leaves no unfinished task behind.
        while self._calls:
            await self._answer(self._take())

    def _take(self) -> list[_Call]:
        """The oldest call, and all that can go with it while they fit."""
        batch: list[_Call] = []
        left: deque[_Call] = deque()
        images = 0
        for call in self._calls:
            if call.answer.done():
                continue
            if batch and (not call.goes_with(batch[0]) or images + len(call.images) > self._max_images):
                left.append(call)
                continue
            batch.append(call)
            images += len(call.images)
        self._calls = left
        return batch

    async def _answer(self, batch: list[_Call]) -> None:
        if not batch:
            return
        try:
            images = np.concatenate([call.images for call in batch])
            prompts = [prompt for call in batch for prompt in call.prompts]
            loop = asyncio.get_running_loop()
            scores = await loop.run_in_executor(self._thread, self._run, images, prompts, batch[0].outputs)
        except Exception as error:
            if len(batch) == 1:
                _settle(batch[0], error)
                return
            self.stats.rerun_alone += len(batch)
            for call in batch:
                await self._answer([call])
            return
        self.stats.batches += 1
        if self._on_batch is not None:
            self._on_batch(len(prompts))
        start = 0
        for call in batch:
            stop = start + len(call.prompts)
            _settle(call, {name: rows[start:stop] for name, rows in scores.items()})
            start = stop
            self.stats.calls += 1
            self.stats.images += len(call.prompts)


def _settle(call: _Call, outcome: Scores | Exception) -> None:
    if call.answer.done():
        return
    if isinstance(outcome, Exception):
        call.answer.set_exception(outcome)
    else:
        call.answer.set_result(outcome)
