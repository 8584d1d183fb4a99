"""What a client is told: events as they come, and the whole answer at the end.

Always true here: names and fields are OpenAI's where it has some (`image_generation.completed`,
`b64_json`), and an image is told with everything it cost.
"""

from __future__ import annotations

import base64
import time
from typing import Any

from cluster.serving.api import Decision, GenerationResponse, Image, error_body
from cluster.serving.events import Decided, Finished, ModelCard, PaintEvent, Refused, Retried, Started

_NAMES = {Started: "started", Decided: "decision", Retried: "retried", Finished: "completed"}


class Answer:
    """Gathers the images of one request."""

    def __init__(self, card: ModelCard, seed: int, count: int) -> None:
        self._card = card
        self._seed = seed
        self._decisions: list[list[Decision]] = [[] for _ in range(count)]
        self._images: dict[int, Image] = {}
        self._size = card.size

    def add(self, index: int, event: PaintEvent) -> dict[str, Any]:
        """What happened to an image; gives what there is to tell of it."""
        if isinstance(event, (Started, Retried)):
            self._decisions[index].clear()
            return {"version": event.version} if isinstance(event, Started) else {}
        if isinstance(event, Decided):
            decision = _decision(event)
            self._decisions[index].append(decision)
            preview = event.preview_png
            return decision.model_dump() | ({} if preview is None else {"preview": data_url(preview)})
        assert isinstance(event, Finished), event
        self._size = event.size  # of a version that may be newer than the card
        image = self._images[index] = Image(
            b64_json=base64.b64encode(event.png).decode(),
            seed=self._seed + index,
            nfe=event.nfe,
            network_evals=event.network_evals,
            looks=event.looks,
            attempts=event.attempts,
            cost=event.cost,
            model_version=event.version,
            decisions=self._decisions[index],
        )
        return image.model_dump()

    def json(self) -> dict[str, Any]:
        """All images, once they are there."""
        images = [self._images[index] for index in range(len(self._decisions))]
        return GenerationResponse(
            created=int(time.time()),
            model=self._card.name,
            model_version=images[-1].model_version,
            size=self._size,
            data=images,
        ).model_dump()


def event_json(answer: Answer, index: int, event: PaintEvent) -> tuple[str, dict[str, Any]]:
    """Name and data of a server-sent event."""
    if isinstance(event, Refused):
        return "error", {"type": "error", **error_body(event)}
    name = f"image_generation.{_NAMES[type(event)]}"
    return name, {"type": name, "index": index, **answer.add(index, event)}


def data_url(png: bytes) -> str:
    """The image as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _decision(event: Decided) -> Decision:
    return Decision(
        action=event.action,
        step=event.step_index,
        timestep=round(event.timestep, 3),
        nfe=event.nfe,
        attempt=event.attempt,
        image_reward=None if event.image_reward is None else round(event.image_reward, 4),
    )
