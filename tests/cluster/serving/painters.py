"""Painters that cost nothing, for tests of the ingress; and a client that speaks to it without a network."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import httpx

from cluster.serving.events import (
    Decided,
    Finished,
    ModelCard,
    PainterLostError,
    PaintEvent,
    PaintRequest,
    Refused,
    Started,
)
from cluster.serving.front import Front
from cluster.serving.generation import Limits
from cluster.serving.limits import AccessRules

CARD = ModelCard("shapes@champion", "3", "64x64", 40, 7, ("continue", "stop"), None)


def painted(request: PaintRequest) -> bytes:
    """The fake image: a digest of everything it depends on."""
    return hashlib.sha256(f"{request.prompt} {request.seed} {request.max_nfe}".encode()).digest()


class FakePainters:
    """Paints digests in three decisions; waits where it is told to, and dies as often as it is told to."""

    def __init__(self, deaths: int = 0) -> None:
        self.deaths = deaths
        self.ready = True
        self.hold: asyncio.Event | None = None
        self.asked: list[PaintRequest] = []
        self.painting = 0
        self.most = 0
        self.refusal: Refused | None = None
        self.size = CARD.size
        self.stuck = False

    async def describe(self) -> ModelCard:
        if not self.ready:
            raise PainterLostError
        if self.stuck:
            await asyncio.Event().wait()
        return CARD

    async def paint(self, request: PaintRequest) -> AsyncGenerator[PaintEvent, None]:
        self.asked.append(request)
        self.painting += 1
        self.most = max(self.most, self.painting)
        try:
            if self.refusal is not None:
                yield self.refusal
                return
            yield Started(CARD.version)
            preview = b"small" if request.previews else None
            yield Decided("continue", 3, 601.0, 4, 1, None, preview)
            if self.hold is not None:
                await self.hold.wait()
            if self.deaths:
                self.deaths -= 1
                raise PainterLostError
            yield Decided("look", 4, 401.0, 5, 1, None, preview)
            yield Decided("stop", 4, 401.0, 5, 1, 0.123456, preview)
            yield Finished(painted(request), CARD.version, self.size, 5, 10, 1, 1, 5.3)
        finally:
            self.painting -= 1


class Desk:
    """A front on fake painters, and a client of it."""

    def __init__(
        self, painters: FakePainters, client: httpx.AsyncClient, front: Front, app: Callable[..., Any]
    ) -> None:
        self.painters, self.client, self.front, self.app = painters, client, front, app

    async def ask(self, **body: object) -> httpx.Response:
        return await self.client.post("/v1/images/generations", json={"prompt": "a red circle", **body})

    def metric(self, name: str) -> float:
        lines = self.front.telemetry.text().decode().splitlines()
        return float(
            next(line for line in lines if line.startswith(f"addiffusion_serving_{name} ")).split()[-1]
        )


def at_desk(
    use: Callable[[Desk], Awaitable[None]],
    *,
    painters: Callable[[], FakePainters] = FakePainters,
    limits: Limits | None = None,
    rules: AccessRules | None = None,
) -> None:
    """Run `use` in an event loop of its own; afterwards nothing may still be painting."""

    async def run() -> None:
        fake = painters()
        front = Front(fake, limits or Limits(), rules or AccessRules())
        app = front.app()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            await use(Desk(fake, client, front, app))
        assert fake.painting == 0
        assert front.telemetry.text().decode().count("addiffusion_serving_slots_in_use 0.0") == 1
        assert front.telemetry.text().decode().count("addiffusion_serving_images_queued 0.0") == 1

    asyncio.run(run())


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Server-sent events as (name, data), read as the standard says."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def png_of(image: dict[str, Any]) -> bytes:
    """The bytes of an image of the response."""
    return base64.b64decode(image["b64_json"], validate=True)


def assert_is_error(response: httpx.Response, *statuses: int) -> dict[str, Any]:
    """An error in OpenAI's shape, without anything that only developers should see."""
    assert response.status_code in (statuses or range(400, 500)), (response.status_code, response.text[:300])
    assert response.headers["content-type"].startswith("application/json"), response.text[:300]
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    return error
