"""Rollout: run requests through the engine with continuous batching, until all are finished.

Always true here: a slot that finishes is refilled before the next denoiser call; results come in the
order of the requests; they do not depend on the number of slots, as long as the decider looks at each
episode on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from actors.continuous import ContinuousBatch, Job
from actors.contracts import Decider, EpisodeRequest, EpisodeResult, QualityScorer
from actors.engine import Engine
from actors.observations import Observer


def rollout(
    engine: Engine,
    decider: Decider,
    observer: Observer,
    requests: Iterable[EpisodeRequest],
    *,
    slots: int,
    scorer: QualityScorer | None,
    record_previews: bool = False,
    on_finished: Callable[[EpisodeResult], None] | None = None,
) -> list[EpisodeResult]:
    """Finish every request; `slots` episodes share each denoiser call.

    The scorer serves `look`, and every decision where the observer needs embeddings (those are counted
    as looks). Raises UserError if slots < 1, or if there is no scorer and something needs one.
    """
    batch = ContinuousBatch(engine, observer, scorer, slots=slots)
    waiting = enumerate(requests)
    order: dict[Job, int] = {}
    results: dict[int, EpisodeResult] = {}
    while True:
        for index, request in islice(waiting, batch.free):
            order[Job(request, decider, record_previews)] = index
        batch.begin([job for job in order if job.episode is None])
        if not batch.active:
            return [results[index] for index in sorted(results)]
        for job in batch.step():
            result = results[order.pop(job)] = job.begun.result()
            if on_finished is not None:
                on_finished(result)
