"""The replicas of one pool as one client sees them: which one a call goes to, and which are left alone.

Invariants:
- A call goes to the replica with the fewest images under way from this client; at most `max_images` are
  under way to each (a single larger call goes alone), and callers wait for room.
- A replica that failed is left alone for a while that doubles with each failure, always by the same
  schedule: 0.1, 0.2, 0.4 ... 5 seconds.
- Which replicas there are is asked again after a loss and every REFRESH_S, so that a pool can be scaled
  while it is used.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
REFRESH_S = 10.0


@dataclass(eq=False)
class Replica:
    """One actor."""

    handle: Any
    outstanding: int = 0
    """Images under way."""
    failures: int = 0
    """Failures since the last answer."""
    failed_at: float = 0.0
    resting_until: float = 0.0

    def rest(self, now: float) -> None:
        """Leaves the actor alone for a while."""
        self.failed_at = now
        self.resting_until = now + min(FIRST_BACKOFF_S * 2**self.failures, LONGEST_BACKOFF_S)
        self.failures += 1


class ReplicaPool:
    """Routes the calls of one client to one pool.

    find: the names of the replicas there are; look_up: a replica's handle, or ValueError where nobody has
    the name any more.
    """

    def __init__(self, name: str, find: Callable[[], Sequence[str]], look_up: Callable[[str], Any]) -> None:
        self.name = name
        self.max_images = sys.maxsize
        self.retries = 0
        self._find = find
        self._look_up = look_up
        self._replicas: dict[str, Replica] = {}
        self._changed = threading.Condition()
        self._refreshed_at = 0.0
        self._refresh()

    def acquire(self, images: int, deadline: float) -> Replica:
        """A rested replica with room for so many images, the one with the fewest under way.

        Waits for one. Raises TimeoutError at the deadline.
        """
        while True:
            if time.monotonic() - self._refreshed_at >= REFRESH_S:
                self._refresh()
            with self._changed:
                now = time.monotonic()
                rested = [each for each in self._replicas.values() if each.resting_until <= now]
                roomy = [
                    each
                    for each in rested
                    if not each.outstanding or each.outstanding + images <= self.max_images
                ]
                if roomy:
                    chosen = min(roomy, key=lambda each: each.outstanding)
                    chosen.outstanding += images
                    return chosen
                if now >= deadline:
                    raise TimeoutError
                waits = [each.resting_until - now for each in self._replicas.values() if each not in rested]
                self._changed.wait(min([deadline - now, REFRESH_S, *waits]))

    def release(self, replica: Replica, images: int) -> None:
        """Counts a finished call, whatever came of it."""
        with self._changed:
            replica.outstanding -= images
            self._changed.notify_all()

    def answered(self, replica: Replica) -> None:
        """The replica lives."""
        replica.failures = 0

    def lost(self, replica: Replica, sent: float) -> None:
        """Counts a call whose replica was lost; one death that took many calls is one failure."""
        with self._changed:
            self.retries += 1
            news = sent > replica.failed_at
            if news:
                replica.rest(time.monotonic())
        if news:
            self._refresh()

    def _refresh(self) -> None:
        """Takes up the replicas there are; if there are none, the old ones stay until there are.

        Asks Ray without holding the lock, which Ray's own thread takes to say that a call has ended.
        """
        self._refreshed_at = time.monotonic()
        names = self._find()
        handles = {}
        for name in names:
            known = self._replicas.get(name)
            if known is not None and not known.failures:
                handles[name] = known.handle
                continue
            with suppress(ValueError):
                handles[name] = self._look_up(name)
        if not handles:
            return
        with self._changed:
            for name, handle in handles.items():
                self._replicas.setdefault(name, Replica(handle)).handle = handle
            for name in self._replicas.keys() - handles.keys():
                del self._replicas[name]
            self._changed.notify_all()
