"""The client of a pool of reward actors.

Invariants:
- A call is answered once and rightly, or raises: an answer lost with its replica is asked for again
  until the deadline, and every answer is checked on arrival.
- Images travel once: they are put into the object store when submitted, and a retry sends the reference.
- A call goes to the replica with the fewest images under way from this client; a replica that failed
  is left alone for a while that doubles with each failure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from rewards_service.contracts import Images, Scores
from rewards_service.scoring import check_batch, check_outputs, check_scores

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0


@dataclass(eq=False)
class _Replica:
    """One actor as this client sees it."""

    handle: Any
    name: str | None
    namespace: str | None
    outstanding: int = 0
    """Images under way."""
    failures: int = 0
    """Failures since the last answer."""
    failed_at: float = 0.0
    resting_until: float = 0.0

    def rest(self) -> None:
        """Leaves the actor alone for a while."""
        self.failed_at = time.monotonic()
        backoff = min(FIRST_BACKOFF_S * 2**self.failures, LONGEST_BACKOFF_S)
        self.resting_until = self.failed_at + backoff
        self.failures += 1

    def look_up(self) -> None:
        """Takes up whoever has the name now; if nobody has, the old handle stays until somebody does."""
        if self.name is not None:
            with suppress(ValueError):
                self.handle = ray.get_actor(self.name, namespace=self.namespace)


class _Call:
    """One method call on the pool, sent again when its replica is lost."""

    def __init__(self, client: ActorClient, method: str, arguments: tuple[Any, ...], images: int) -> None:
        self._client = client
        self._method = method
        self._arguments = arguments
        self._images = images
        self._deadline = time.monotonic() + client.deadline_s
        self._replica, self._future = self._send()

    def value(self) -> Any:
        """Waits for the answer; ScoringError and ValueError arrive as the replica raised them."""
        while True:
            try:
                answer = self._future.result(timeout=max(self._deadline - time.monotonic(), 0))
            except RayTaskError as error:
                raise error.cause from None
            except (RayActorError, ObjectLostError) as error:
                self._client.lost(self._replica, self._sent)
                if time.monotonic() >= self._deadline:
                    raise TimeoutError(self._late()) from error
            except TimeoutError:
                raise TimeoutError(self._late()) from None
            else:
                self._replica.failures = 0
                return answer
            self._replica, self._future = self._send()

    def _send(self) -> tuple[_Replica, Future[Any]]:
        replica = self._client.acquire(self._images, self._deadline)
        self._sent = time.monotonic()
        future: Future[Any] = getattr(replica.handle, self._method).remote(*self._arguments).future()
        future.add_done_callback(lambda _: self._client.release(replica, self._images))
        return replica, future

    def _late(self) -> str:
        return f"rewards service: no answer to {self._method!r} within deadline_s={self._client.deadline_s:g}"


class PendingScores:
    """A scoring call under way; `result` may be asked for as often as one likes."""

    def __init__(self, call: _Call, sources: dict[str, str], prompts: list[str]) -> None:
        self._call: _Call | None = call
        self._sources = sources
        self._prompts = prompts
        self._scores: Scores | None = None

    def result(self) -> Scores:
        """The checked scores. Raises ScoringError, or TimeoutError after the client's deadline."""
        if self._scores is None:
            assert self._call is not None
            scores: Scores = self._call.value()
            check_scores(scores, self._sources, self._prompts)
            self._scores, self._call = scores, None  # Without the call, the store may drop the images.
        return self._scores


class ActorClient:
    """A `RewardClient` over the replicas of one pool, given as handles or as actor names.

    `retries` counts calls that were sent again since the client was made.
    """

    def __init__(
        self, replicas: Sequence[Any], *, namespace: str | None = None, deadline_s: float = 120.0
    ) -> None:
        if not replicas:
            raise ValueError("replicas: none; accepted: at least one actor handle or name")
        self.deadline_s = deadline_s
        self.retries = 0
        self._lock = threading.Lock()
        self._replicas = [_replica(each, namespace) for each in replicas]
        self._sources: dict[str, str] = _Call(self, "sources", (), 0).value()
        self.outputs = tuple(self._sources)

    def submit(
        self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None
    ) -> PendingScores:
        """Sends N images and prompts, and returns at once."""
        check_batch(images, prompts)
        wanted = check_outputs(outputs, self._sources)
        stored = ray.put(np.ascontiguousarray(images))
        call = _Call(self, "score", (stored, list(prompts), wanted), len(images))
        return PendingScores(call, {name: self._sources[name] for name in wanted}, list(prompts))

    def score(self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None) -> Scores:
        """Sends, and waits for the scores."""
        return self.submit(images, prompts, outputs).result()

    def acquire(self, images: int, deadline: float) -> _Replica:
        """The rested replica with the fewest images under way; waits for one to be rested if it must."""
        while True:
            now = time.monotonic()
            with self._lock:
                rested = [each for each in self._replicas if each.resting_until <= now]
                if rested or now >= deadline:
                    chosen = min(rested or self._replicas, key=lambda each: each.outstanding)
                    chosen.outstanding += images
                    return chosen
                soonest = min(each.resting_until for each in self._replicas)
            time.sleep(max(min(soonest, deadline) - now, 0))

    def release(self, replica: _Replica, images: int) -> None:
        """Counts a finished call, whatever came of it."""
        with self._lock:
            replica.outstanding -= images

    def lost(self, replica: _Replica, sent: float) -> None:
        """Counts a call whose replica was lost; one death that took many calls is one failure."""
        with self._lock:
            self.retries += 1
            news = sent > replica.failed_at
            if news:
                replica.rest()
        if news:
            replica.look_up()


def _replica(actor: Any, namespace: str | None) -> _Replica:
    if not isinstance(actor, str):
        return _Replica(actor, None, None)
    try:
        return _Replica(ray.get_actor(actor, namespace=namespace), actor, namespace)
    except ValueError:
        raise ValueError(
            f"replicas: no actor is called {actor!r}; accepted: a running pool's names"
        ) from None
