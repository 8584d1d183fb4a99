"""Generation on a Ray cluster: Ray Data maps jobs over a pool of actors, each with a bench of its own.

Prompts and seeds go in, rows come out; images go from the actors into the store, which has to be on a disk
that all nodes share. What an actor's death interrupts is made again by another one.

Always true here: a job's rows are reported once; its part is in the store before that. What is started here
is stopped here, and a Ray session that was there before stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch

from evaluation.bench import Bench
from evaluation.generate import Job, Workers, make_and_keep
from evaluation.rows import SCHEMA, ImageRow, from_records, to_records
from evaluation.store import ImageStore
from learner.connection import connected

JOB = "job"
_REPORTED = pa.schema([(JOB, pa.int64()), *SCHEMA])


class _Generator:
    """One actor: opens the bench once, makes one job a call."""

    def __init__(
        self, open_bench: Callable[[], Bench], jobs: Sequence[Job], store: ImageStore | None
    ) -> None:
        torch.set_num_threads(1)
        self._bench = open_bench()
        self._jobs = jobs
        self._store = store

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """The rows of the one job of this batch."""
        (index,) = batch[JOB].tolist()
        records = to_records(make_and_keep(self._bench, self._jobs[index], self._store))
        return pa.Table.from_pylist([{JOB: index, **record} for record in records], schema=_REPORTED)


def run_in_pool(
    open_bench: Callable[[], Bench], jobs: Sequence[Job], workers: Workers, store: ImageStore | None
) -> Iterator[tuple[Job, tuple[ImageRow, ...]]]:
    """Rows of every job, as they get ready."""
    count = min(workers.count, len(jobs))
    cpus = count + 1  # one for Ray Data itself, should it want any
    with connected(workers.address, cpus, "evaluation.address"):
        _quiet()
        rows = ray.data.from_items(
            [{JOB: index} for index in range(len(jobs))], override_num_blocks=len(jobs)
        )
        made = rows.map_batches(
            _Generator,
            fn_constructor_args=(open_bench, list(jobs), store),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            num_cpus=1,
            num_gpus=workers.gpus,
        )
        for batch in made.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            records = batch.to_pylist()
            for index in sorted({record[JOB] for record in records}):
                own = [record for record in records if record[JOB] == index]
                yield jobs[index], tuple(from_records(own))


def _quiet() -> None:
    """Progress is drawn by who asks for the rows."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
