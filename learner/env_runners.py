"""The env runners of a run as a pool of workers: work spread over those that live, and waiting for them.

Always true here: every request is done once, whichever env runner did it; what a dying one leaves undone is
done by those that live; with no env runner left the wait ends, by one coming back or by a TrainingFailure; a
death is said, also where the algorithm waits for no one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ray.rllib.algorithms.algorithm import Algorithm

from actors.contracts import EpisodeRequest
from actors.env_runner import DiffusionEnvRunner
from learner.events import EventLog
from learner.guards import TrainingFailure

#: How often what is left of a piece of work is given out.
_ATTEMPTS = 5


class Finished(Protocol):
    """What work gives for each request."""

    @property
    def request(self) -> EpisodeRequest:
        """The request that this belongs to."""
        ...


T = TypeVar("T", bound=Finished)


class EnvRunners:
    """`count` env runners of an algorithm, or with count 0 the driver's own.

    patience_s: how long all of them may be gone.
    """

    def __init__(self, algorithm: Algorithm, count: int, patience_s: float, events: EventLog) -> None:
        self._algorithm = algorithm
        self._group = algorithm.env_runner_group
        self._count = count
        self._patience_s = patience_s
        self._events = events
        self._died = 0

    def say_losses(self) -> None:
        """An event where env runners have died since the last time; an algorithm may go on without a word."""
        gone = self._count - self._group.num_healthy_remote_env_runners()
        died = self._group.num_remote_worker_restarts() + gone
        if died > self._died and gone < self._count:  # of all of them `wait` speaks
            self._events.record(
                "env_runners",
                f"{died - self._died} of {self._count} env runners died with what they were gathering; "
                "they are started again",
                {"alive": self._count - gone},
            )
        self._died = max(self._died, died)

    def wait(self) -> None:
        """Wait until one env runner lives; RLlib goes on without any, at once and with empty results."""
        if self._count == 0:
            return
        if self._group.num_healthy_remote_env_runners() > 0:
            return
        self._events.record(
            "env_runners", f"all {self._count} env runners are gone; they are started again", {"alive": 0}
        )
        started = time.monotonic()
        while self._group.num_healthy_remote_env_runners() == 0:
            self._algorithm.restore_env_runners(self._group)
            if time.monotonic() - started > self._patience_s:
                raise TrainingFailure(
                    f"no env runner came back within {self._patience_s:g} s; their own messages say why",
                    "env_runners",
                )
            time.sleep(1.0)
        alive = self._group.num_healthy_remote_env_runners()
        self._events.record("env_runners", f"{alive} of {self._count} env runners are back", {"alive": alive})

    def sync_weights(self) -> None:
        """Give all of them the learner's weights."""
        self._group.sync_weights(
            from_worker_or_learner_group=self._algorithm.learner_group, inference_only=True
        )

    def spread(
        self,
        requests: Sequence[EpisodeRequest],
        work: Callable[[DiffusionEnvRunner, list[EpisodeRequest]], list[T]],
    ) -> list[T]:
        """`work` of all requests, in their order, each env runner doing its share."""
        done: dict[EpisodeRequest, T] = {}
        for _ in range(_ATTEMPTS):
            self.wait()
            left = [request for request in requests if request not in done]
            live = self._group.healthy_env_runner_ids() or [0]

            def run_share(runner: DiffusionEnvRunner) -> list[T]:
                return work(runner, left[live.index(runner.index) :: len(live)])  # noqa: B023

            parts = self._group.foreach_env_runner(run_share, local_env_runner=live == [0])
            done |= {finished.request: finished for part in parts for finished in part}
            if all(request in done for request in requests):
                return [done[request] for request in requests]
        raise TrainingFailure("the env runners kept failing; their own messages say why", "env_runners")
