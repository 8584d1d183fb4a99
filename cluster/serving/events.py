"""What the ingress and the painters tell each other.

Always true here: plain frozen data; of an image the last event is `Finished` or `Refused`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class PaintRequest:
    """One image; every random number of it follows from the seed."""

    prompt: str
    seed: int
    size: str = "auto"
    """WIDTHxHEIGHT, or the model's own."""
    max_nfe: int | None = None
    quality_floor: float | None = None
    previews: bool = False


@dataclass(frozen=True)
class Started:
    """It has a slot, and this version paints it to its end."""

    version: str


@dataclass(frozen=True)
class Decided:
    """One decision, at step `step_index` of the schedule; nfe: denoiser calls spent before it."""

    action: str
    step_index: int
    timestep: float
    nfe: int
    attempt: int
    image_reward: float | None
    preview_png: bytes | None = None


@dataclass(frozen=True)
class Finished:
    """The image, and what it cost."""

    png: bytes
    version: str
    size: str
    """WIDTHxHEIGHT."""
    nfe: int
    network_evals: int
    looks: int
    attempts: int
    cost: float


@dataclass(frozen=True)
class Retried:
    """The painter was lost; what was told of this image so far does not count, it begins again."""


@dataclass(frozen=True)
class Refused:
    """No image: an HTTP status, and the error in the words of OpenAI's API."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None


PaintEvent = Started | Decided | Finished | Retried | Refused


@dataclass(frozen=True)
class ModelCard:
    """What clients may know of the version that is painting now."""

    name: str
    version: str
    size: str
    max_nfe: int
    num_steps: int
    actions: tuple[str, ...]
    quality: dict[str, Any] | None
    """Of a calibrated policy: the score, and what it reaches stopping early and never doing so."""


class PainterLostError(Exception):
    """The process that was painting has died, or cannot be reached."""


class Painters(Protocol):
    """All painters, as the ingress reaches them."""

    def paint(self, request: PaintRequest) -> AsyncGenerator[PaintEvent, None]:
        """Events of one image, up to the last; raises PainterLostError."""
        ...

    async def describe(self) -> ModelCard:
        """Answered by any painter that could paint now; raises PainterLostError."""
        ...
