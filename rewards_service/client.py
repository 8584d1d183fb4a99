"""The client of a rewards service: one request in, scores of all its pools out.

Invariants:
- A call is answered once and rightly, or raises: an answer lost with its replica is asked for again
  until the deadline, and every answer is checked on arrival.
- Images travel once: they are put into the object store when submitted, as one array whatever the number of
  pools, and a retry sends the same reference.
- A caller that is faster than the service waits in `submit`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from rewards_service.actor import PoolSpec
from rewards_service.contracts import Images, Scores
from rewards_service.routing import Replica, ReplicaPool
from rewards_service.scoring import check_batch, check_outputs, check_scores


class _Call:
    """One method call on a pool, sent again when its replica is lost.

    The deadline runs while somebody waits: from the sending until there is a replica to send to, and from
    the first question for the answer.
    """

    def __init__(
        self, pool: ReplicaPool, deadline_s: float, method: str, arguments: tuple[Any, ...], images: int
    ) -> None:
        self._pool = pool
        self._deadline_s = deadline_s
        self._method = method
        self._arguments = arguments
        self._images = images
        self._attempts = 0
        self._last_loss = ""
        self._replica, self._future = self._send(time.monotonic() + deadline_s)

    def value(self) -> Any:
        """Waits for the answer; ScoringError and ValueError arrive as the replica raised them."""
        deadline = time.monotonic() + self._deadline_s
        while True:
            try:
                answer = self._future.result(timeout=max(deadline - time.monotonic(), 0))
            except RayTaskError as error:
                raise error.cause from None
            except (RayActorError, ObjectLostError) as error:
                self._last_loss = type(error).__name__
                self._pool.lost(self._replica, self._sent)
            except TimeoutError:
                raise TimeoutError(self._late()) from None
            else:
                self._pool.answered(self._replica)
                return answer
            self._replica, self._future = self._send(deadline)

    def _send(self, deadline: float) -> tuple[Replica, Future[Any]]:
        try:
            replica = self._pool.acquire(self._images, deadline)
        except TimeoutError:
            raise TimeoutError(self._late()) from None
        self._sent = time.monotonic()
        arguments = (*self._arguments, self._attempts) if self._method == "score" else self._arguments
        self._attempts += 1
        future: Future[Any] = getattr(replica.handle, self._method).remote(*arguments).future()
        future.add_done_callback(lambda _: self._pool.release(replica, self._images))
        return replica, future

    def _late(self) -> str:
        asked = f"scores of {self._images} images" if self._method == "score" else "sign of life"
        losses = f", sent {self._attempts} times" if self._attempts > 1 else ""
        losses += f", last lost with its replica ({self._last_loss})" if self._last_loss else ""
        return (
            f"scorer pool {self._pool.name!r}: no {asked} within {self._deadline_s:g} s{losses}; "
            "`addiffusion rewards status` and the replicas' logs say why, rewards.deadline_s sets the wait"
        )


class PendingScores:
    """A request under way; `result` may be asked for as often as one likes."""

    def __init__(self, calls: Sequence[_Call], sources: Mapping[str, str], prompts: list[str]) -> None:
        self._calls = calls
        self._sources = sources
        self._prompts = prompts
        self._scores: Scores | None = None

    def result(self) -> Scores:
        """The checked scores. Raises ScoringError, or TimeoutError after the client's deadline."""
        if self._scores is None:
            found: Scores = {}
            for call in self._calls:
                found |= call.value()
            check_scores(found, self._sources, self._prompts)
            self._scores = {name: found[name] for name in self._sources}
            self._calls = ()  # without the calls, the store may drop the images
        return self._scores


class ActorClient:
    """A `RewardClient` over the pools of one service, each of which gives outputs of its own.

    `identity` names the reward models; `rewards_service.service.connect` makes a client by a service's name.
    """

    def __init__(self, pools: Sequence[ReplicaPool], *, deadline_s: float = 180.0) -> None:
        if not pools:
            raise ValueError("pools: none; accepted: at least one")
        self.deadline_s = deadline_s
        self._pools = tuple(pools)
        self._sources: dict[str, str] = {}
        self._pool_of: dict[str, ReplicaPool] = {}
        identities: list[str] = []
        questions = [(pool, self._ask(pool, "sources"), self._ask(pool, "spec")) for pool in self._pools]
        for pool, asked_sources, asked_spec in questions:
            sources: dict[str, str] = asked_sources.value()
            spec: PoolSpec = asked_spec.value()
            pool.max_images = spec.config.max_queued
            identities.append(spec.identity)
            for output, scorer in sources.items():
                if output in self._sources:
                    other = self._pool_of[output]
                    raise ValueError(f"pools: {other.name!r} and {pool.name!r} give {output!r}")
                self._sources[output] = scorer
                self._pool_of[output] = pool
        self.outputs = tuple(self._sources)
        self.identity = "+".join(dict.fromkeys(identities))

    @property
    def retries(self) -> int:
        """Calls that were sent again since the client was made."""
        return sum(pool.retries for pool in self._pools)

    def submit(
        self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None
    ) -> PendingScores:
        """Sends N images and prompts; returns at once unless too many images are under way.

        Raises TimeoutError if there is no room for them within the deadline.
        """
        check_batch(images, prompts)
        wanted = check_outputs(outputs, self._sources)
        stored = ray.put(np.ascontiguousarray(images))
        calls = []
        for pool in self._pools:
            of_pool = tuple(name for name in wanted if self._pool_of[name] is pool)
            if of_pool:
                arguments = ([stored], list(prompts), of_pool)
                calls.append(_Call(pool, self.deadline_s, "score", arguments, len(images)))
        return PendingScores(calls, {name: self._sources[name] for name in wanted}, list(prompts))

    def score(self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None) -> Scores:
        """Sends, and waits for the scores."""
        return self.submit(images, prompts, outputs).result()

    def _ask(self, pool: ReplicaPool, method: str) -> _Call:
        return _Call(pool, self.deadline_s, method, (), 0)
