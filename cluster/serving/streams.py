"""Server-sent events: a request's images, told as they are painted.

Always true here: whatever becomes of the client, the generation is closed and its end is told once.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cluster.serving.answers import Answer, event_json
from cluster.serving.events import PaintEvent, Refused
from cluster.serving.generation import Generation
from cluster.serving.telemetry import outcome_of


class EventStream(StreamingResponse):
    """The events of a generation, the first of which has happened; `ended` is called with the outcome."""

    def __init__(
        self,
        generation: Generation,
        answer: Answer,
        first: tuple[int, PaintEvent],
        ended: Callable[[str], None],
    ) -> None:
        self._generation, self._answer, self._first, self._ended = generation, answer, first, ended
        self._outcome = "left"
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._events(), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended(self._outcome)
            await self._generation.close()

    async def _events(self) -> AsyncIterator[str]:
        index, event = self._first
        while True:
            yield sse(*event_json(self._answer, index, event))
            if isinstance(event, Refused):
                self._outcome = outcome_of(event)
                return
            if not self._generation.unfinished:
                self._outcome = "ok"
                return
            index, event = await self._generation.next()


def sse(name: str, data: dict[str, Any]) -> str:
    """One event; JSON has no line breaks, so that nothing in it can end the event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
