"""A request for images from its admission to its end: queue, painters, retries, deadline.

Always true here: an image that is admitted ends, with a result, a refusal or at the deadline; a painter
that dies takes nothing with it, as its images begin again on another, and prompt and seed make them the
same; whoever leaves frees the slots.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.serving.events import (
    Finished,
    PainterLostError,
    Painters,
    PaintEvent,
    PaintRequest,
    Refused,
    Retried,
    Started,
)
from cluster.serving.telemetry import Telemetry

log = logging.getLogger("addiffusion.serving")

LAST_TRY = 4
"""An image that has lost so many painters is likely to be the reason."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0


@dataclass(frozen=True)
class Limits:
    """concurrency: images with the painters at once; max_queue: how many more may wait.

    timeout_s: seconds that a request may take.
    """

    concurrency: int = 16
    max_queue: int = 64
    timeout_s: float = 120.0


class Gate:
    """Admits images, and knows how many there are."""

    def __init__(self, painters: Painters, limits: Limits, telemetry: Telemetry) -> None:
        self.painters = painters
        self.limits = limits
        self.telemetry = telemetry
        self.turn = asyncio.Semaphore(limits.concurrency)
        self.draining = False
        self._admitted = 0
        self._in_slots = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._usual_s = 1.0
        self._heard = -math.inf

    def admit(self, requests: Sequence[PaintRequest]) -> Generation | Refused:
        """Start painting, or say why not."""
        if self.draining:
            return Refused(503, "the server is shutting down", kind="server_error", code="draining")
        most = self.limits.concurrency + self.limits.max_queue
        if len(requests) > most:
            return Refused(
                400, f"n: at most {most} images are taken at once", param="n", code="invalid_value"
            )
        if len(requests) > most - self._admitted:
            return Refused(
                429,
                "too many images are waiting; try again later",
                kind="rate_limit_error",
                code="queue_full",
            )
        self.changed(admitted=len(requests))
        return Generation(self, requests)

    @property
    def retry_after_s(self) -> int:
        """When to try again: what a request took lately."""
        return max(1, math.ceil(self._usual_s))

    async def drain(self) -> None:
        """Admit nothing more, and wait until everything that was admitted has ended."""
        self.draining = True
        await self._empty.wait()

    def heard_within(self, seconds: float) -> bool:
        """Whether a painter has told anything of an image so recently."""
        return time.monotonic() - self._heard < seconds

    def heard(self) -> None:
        """A painter has told something."""
        self._heard = time.monotonic()

    def took(self, seconds: float) -> None:
        """A request has been answered."""
        self.telemetry.seconds.observe(seconds)
        self._usual_s += 0.2 * (seconds - self._usual_s)

    def changed(self, *, admitted: int = 0, in_slots: int = 0) -> None:
        """So many more were admitted, or have a slot."""
        self._admitted += admitted
        self._in_slots += in_slots
        self.telemetry.slots.set(self._in_slots)
        self.telemetry.queued.set(self._admitted - self._in_slots)
        if self._admitted:
            self._empty.clear()
        else:
            self._empty.set()


class Generation:
    """The images of one request, painted side by side; `close` it in any case."""

    def __init__(self, gate: Gate, requests: Sequence[PaintRequest]) -> None:
        self._gate = gate
        self._events: asyncio.Queue[tuple[int, PaintEvent]] = asyncio.Queue()
        self._deadline = asyncio.get_running_loop().time() + gate.limits.timeout_s
        self._unfinished = len(requests)
        self._count = len(requests)
        self._started: set[int] = set()
        self._tasks = [asyncio.create_task(self._paint(*numbered)) for numbered in enumerate(requests)]

    @property
    def unfinished(self) -> int:
        """How many images are still to come."""
        return self._unfinished

    async def next(self) -> tuple[int, PaintEvent]:
        """The next event of any image; once the time is over that is what it says."""
        assert self._unfinished, "all images have ended"
        try:
            left = self._deadline - asyncio.get_running_loop().time()
            index, event = await asyncio.wait_for(self._events.get(), max(0.0, left))
        except TimeoutError:
            limit = self._gate.limits.timeout_s
            message = f"not finished within {limit:g} s; ask for fewer images or a lower max_nfe"
            return 0, Refused(504, message, kind="server_error", code="timeout")
        if isinstance(event, (Finished, Refused)):
            self._unfinished -= 1
        if isinstance(event, Finished):
            self._gate.telemetry.nfe.observe(event.nfe)
        return index, event

    async def close(self) -> None:
        """Leave what is not finished; the slots are free again."""
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        self._gate.changed(admitted=-self._count)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _paint(self, index: int, request: PaintRequest) -> None:
        try:
            async with self._gate.turn:
                await self._paint_in_turn(index, request)
        except Exception:
            log.exception("the ingress failed")
            await self._events.put((index, _lost("the server failed")))
        finally:
            self._left_slot(index)

    async def _paint_in_turn(self, index: int, request: PaintRequest) -> None:
        pause = _FIRST_PAUSE_S
        for attempt in range(1, LAST_TRY + 1):
            try:
                events = self._gate.painters.paint(request)
                try:
                    async for event in events:
                        self._gate.heard()
                        if isinstance(event, Started):
                            self._started.add(index)
                            self._gate.changed(in_slots=1)
                        elif isinstance(event, (Finished, Refused)):
                            self._left_slot(index)
                        await self._events.put((index, event))
                        if isinstance(event, (Finished, Refused)):
                            return
                finally:
                    await events.aclose()
            except PainterLostError:
                self._left_slot(index)
                if attempt == LAST_TRY:
                    break
                self._gate.telemetry.retries.inc()
                log.warning("a painter was lost; its image begins again")
                await self._events.put((index, Retried()))
                await asyncio.sleep(pause)
                pause = min(2.0 * pause, _LONGEST_PAUSE_S)
        await self._events.put((index, _lost("no painter could finish the image")))

    def _left_slot(self, index: int) -> None:
        if index in self._started:
            self._started.remove(index)
            self._gate.changed(in_slots=-1)


def _lost(message: str) -> Refused:
    return Refused(500, message, kind="server_error", code="painting_failed")
