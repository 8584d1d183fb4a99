"""Reward models in a process of their own, without Ray.

Always true here: answers pass the same checks as everywhere; the process has one thread, and ends with the
block that opened it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager

import torch

from rewards_service.contracts import Images, Scorer, Scores
from rewards_service.local import LocalClient


class ProcessClient:
    """A `RewardClient` whose scorers run in another process. Made by `scoring_process`."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def submit(
        self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None
    ) -> Future[Scores]:
        """Starts scoring and returns at once."""
        return self._executor.submit(_score, images, list(prompts), outputs)

    def score(self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None) -> Scores:
        """Submits and waits."""
        return self.submit(images, prompts, outputs).result()


@contextmanager
def scoring_process(open_scorers: Callable[[], Sequence[Scorer]]) -> Iterator[ProcessClient]:
    """A client of the scorers that `open_scorers` (importable) makes in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _start, (open_scorers,)) as executor:
        yield ProcessClient(executor)


_client: LocalClient | None = None
"""The scorers of a scoring process, from its start to its end."""


def _start(open_scorers: Callable[[], Sequence[Scorer]]) -> None:
    global _client
    torch.set_num_threads(1)
    _client = LocalClient(open_scorers())


def _score(images: Images, prompts: Sequence[str], outputs: Sequence[str] | None) -> Scores:
    assert _client is not None
    return _client.score(images, prompts, outputs)
