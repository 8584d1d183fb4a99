"""A bound on the images that are held at one time, inside one event loop.

Always true: at most `limit` images are held, except by a single larger call that is held alone; callers
are let in in the order they came, so that a large one is not overtaken for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ImageBudget:
    """Counts images; `room` waits for so many to fit and holds them while its block runs."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit: {limit}; accepted: 1 or more images")
        self.limit = limit
        self.held = 0
        self.most_held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def room(self, images: int) -> AsyncIterator[None]:
        """Room for so many images, given back at the end of the block."""
        await self._enter(images)
        try:
            yield
        finally:
            self.held -= images
            self._let_in()

    async def _enter(self, images: int) -> None:
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((images, admitted))
        self._let_in()
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():
                self.held -= images
            self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiting:
            images, admitted = self._waiting[0]
            if not admitted.done():
                if self.held and self.held + images > self.limit:
                    return
                self.held += images
                self.most_held = max(self.most_held, self.held)
                admitted.set_result(None)
            self._waiting.popleft()
