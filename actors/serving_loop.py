"""The serving loop: one thread that paints what is submitted, with continuous batching.

Always true here: one thread alone touches the models, so that several of them may share a backbone; every
submitted image ends in its future, as a result or as its own error, whatever happens to its neighbours. Where
a call fails for several images, each is painted again alone: with the same result, as its seed fixes
everything. No Ray.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from actors.continuous import ContinuousBatch, Job, OnDecision
from actors.contracts import Decider, DecisionRecord, EpisodeRequest, EpisodeResult, Images, QualityScorer
from actors.engine import Engine
from actors.observations import Observer

log = logging.getLogger(__name__)


@dataclass(eq=False)
class PaintingModel:
    """What paints: an engine on its backbone, what it observes, and by what looks are scored."""

    engine: Engine
    observer: Observer
    scorer: QualityScorer | None


@dataclass(frozen=True)
class Painted:
    """A finished image, uint8 H x W x 3, and how it came about."""

    result: EpisodeResult
    image_HWC: Images


@dataclass(eq=False)
class Ticket:
    """One submitted image. `future` may be cancelled: its slot is free from the next call on."""

    model: PaintingModel
    request: EpisodeRequest
    decider: Decider
    record_previews: bool
    on_started: Callable[[], None] | None
    on_decision: OnDecision | None
    future: Future[Painted] = field(default_factory=Future)
    told: int = 0
    """How many decisions its submitter knows of: painted again, it does not hear of them twice."""
    started: bool = False
    alone: bool = False

    def job(self) -> Job:
        """A new attempt at it."""
        decisions = 0

        def tell(record: DecisionRecord, preview: Images | None) -> None:
            nonlocal decisions
            decisions += 1
            if decisions > self.told:
                self.told = decisions
                if self.on_decision is not None and not self.future.cancelled():
                    self.on_decision(record, preview)

        return Job(self.request, self.decider, self.record_previews, tell)


class ServingLoop:
    """Paints on a thread of its own until it is closed; images of all models share `slots` slots."""

    def __init__(self, *, slots: int, torch_threads: int | None = None) -> None:
        self.slots = slots
        self._torch_threads = torch_threads
        self._batches: dict[PaintingModel, ContinuousBatch] = {}
        self._running: dict[Job, Ticket] = {}
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="painting", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether anything submitted now would be painted."""
        return self._thread.is_alive() and not self._closed

    def submit(
        self,
        model: PaintingModel,
        request: EpisodeRequest,
        decider: Decider,
        *,
        record_previews: bool = False,
        on_started: Callable[[], None] | None = None,
        on_decision: OnDecision | None = None,
    ) -> Future[Painted]:
        """The image, as soon as it is painted. The callbacks are called on the painting thread."""
        ticket = Ticket(model, request, decider, record_previews, on_started, on_decision)
        with self._changed:
            assert not self._closed, "the loop is closed"
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket.future

    def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        if self._torch_threads is not None:
            torch.set_num_threads(self._torch_threads)
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closed):
                    self._changed.wait()
                if self._closed and not self._waiting and not self._running:
                    return
            self._drop_cancelled()
            self._fill()
            for model, batch in list(self._batches.items()):
                if batch.active:
                    self._step(batch)
                else:
                    del self._batches[model]  # versions come and go; their networks should, too

    def _drop_cancelled(self) -> None:
        for job, ticket in list(self._running.items()):
            if ticket.future.cancelled():
                self._batches[ticket.model].drop(job)
                del self._running[job]

    def _fill(self) -> None:
        """Give free slots to who waits, in their order; who is to be painted alone waits until that is so."""
        taken: dict[PaintingModel, list[Ticket]] = {}
        count = len(self._running)
        with self._changed:
            while self._waiting and count < self.slots:
                ticket = self._waiting[0]
                if ticket.future.cancelled():
                    self._waiting.popleft()
                    continue
                lonely = ticket.alone or any(running.alone for running in self._running.values())
                if lonely and count:
                    break
                self._waiting.popleft()
                taken.setdefault(ticket.model, []).append(ticket)
                count += 1
                if ticket.alone:
                    break
        for model, tickets in taken.items():
            self._begin(model, tickets)

    def _begin(self, model: PaintingModel, tickets: list[Ticket]) -> None:
        jobs = {ticket.job(): ticket for ticket in tickets}
        try:
            batch = self._batches.get(model)
            if batch is None:
                batch = ContinuousBatch(model.engine, model.observer, model.scorer, slots=self.slots)
                self._batches[model] = batch
            batch.begin(list(jobs))
        except Exception as error:
            self._failed(tickets, error)
            return
        self._running.update(jobs)
        for ticket in tickets:
            if ticket.on_started is not None and not ticket.started:
                ticket.on_started()
            ticket.started = True

    def _step(self, batch: ContinuousBatch) -> None:
        try:
            finished = batch.step()
            latents = [job.begun.clean_CHW for job in finished]
            images = batch.engine.backbone.decode(torch.stack(latents)) if finished else ()
            painted = [
                Painted(job.begun.result(), image) for job, image in zip(finished, images, strict=True)
            ]
        except Exception as error:
            failed = [(job, ticket) for job, ticket in self._running.items() if _is_of(batch, ticket)]
            batch.active.clear()
            for job, _ in failed:
                del self._running[job]
            self._failed([ticket for _, ticket in failed], error)
            return
        for job, done in zip(finished, painted, strict=True):
            _settle(self._running.pop(job).future, done)

    def _failed(self, tickets: list[Ticket], error: Exception) -> None:
        """A lone image has its error; of several nobody knows whose it was, and each is painted alone."""
        if len(tickets) == 1:
            _settle(tickets[0].future, error)
            return
        log.warning(
            "%d images failed together (%s); each is painted alone", len(tickets), type(error).__name__
        )
        for ticket in tickets:
            ticket.alone = True
        with self._changed:
            self._waiting.extendleft(reversed(tickets))


def _is_of(batch: ContinuousBatch, ticket: Ticket) -> bool:
    return ticket.model.engine is batch.engine


def _settle(future: Future[Painted], outcome: Painted | Exception) -> None:
    """Unless nobody waits any more."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
