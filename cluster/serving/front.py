"""The ingress: HTTP in, images and their decisions out. No model, and no Ray.

Always true here: every answer that is not a success is JSON in OpenAI's error shape, without a traceback;
prompts are not logged; a page elsewhere cannot paint with a visitor's browser, as only JSON is taken and no
other origin is allowed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cluster.serving.answers import Answer
from cluster.serving.api import (
    ErrorResponse,
    GenerationRequest,
    GenerationResponse,
    error_body,
    read_request,
)
from cluster.serving.events import ModelCard, PainterLostError, Painters, PaintRequest, Refused
from cluster.serving.generation import Gate, Generation, Limits
from cluster.serving.limits import AccessRules, read_body
from cluster.serving.page import page
from cluster.serving.streams import EventStream
from cluster.serving.telemetry import NOT_READY, Telemetry, outcome_of

log = logging.getLogger("addiffusion.serving")

_READY_S = 5.0
"""So long a painter may take to say that it is there."""
_READY_BUSY_S = 0.5
"""... where one has been heard of within that time: its answer may have to wait for a place among images."""
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "Not a request that can be painted",
        401: "No token, or a wrong one",
        404: "Another model than the one that is served",
        408: "Not sent in time",
        413: "Too large",
        415: "Not JSON",
        421: "Another host name than a loopback one",
        422: "The quality floor cannot be reached",
        429: "Too many images are waiting",
        500: "The image could not be painted",
        503: "Not ready, or shutting down",
        504: "Not finished in time",
    }.items()
}


_MODEL_NAME = {"parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]}


class Front:
    """The endpoint's routes, on painters that may be anywhere."""

    def __init__(self, painters: Painters, limits: Limits, rules: AccessRules) -> None:
        self.telemetry = Telemetry()
        self.gate = Gate(painters, limits, self.telemetry)
        self._painters = painters
        self._rules = rules
        self._card: tuple[float, ModelCard] | None = None

    def app(self) -> FastAPI:
        """The ASGI application."""
        app = FastAPI(
            title="AdDiffusion",
            description="Images that cost what their prompts deserve. Compatible with OpenAI's images API.",
            docs_url=None,  # FastAPI's pages load scripts from elsewhere
            redoc_url=None,
        )
        self._route(app, "/v1/images/generations", self.generations, "POST", responses=_GENERATIONS)
        self._route(app, "/v1/models", self.models, "GET", responses=_only(400, 401, 421, 503))
        self._route(
            app,
            "/v1/models/{name:path}",
            self.model,
            "GET",
            openapi_extra=_MODEL_NAME,
            responses=_only(400, 401, 404, 421, 503),
        )
        self._route(app, "/metrics", self.metrics, "GET", response_class=PlainTextResponse)
        self._route(app, "/healthz", self.healthz, "GET", token=False, responses=_only(400, 421, 503))
        self._route(app, "/", self.page, "GET", token=False, response_class=HTMLResponse)
        app.add_exception_handler(HTTPException, _http_error)
        app.add_exception_handler(RequestValidationError, _http_error)
        app.add_exception_handler(Exception, _unexpected)
        return app

    def _route(
        self, app: FastAPI, path: str, handler: Callable[[Request], Any], method: str, **options: Any
    ) -> None:
        token = options.pop("token", True)
        extra = options.pop("openapi_extra", _REQUEST_BODY if method == "POST" else None)

        async def guarded(request: Request) -> Response:
            refused = self._rules.check_host(request) or self._rules.check_headers(request)
            if refused is None and token:
                refused = self._rules.check_token(request)
            if refused is not None:
                return self._refuse(refused, counted=method == "POST")
            response: Response = await handler(request)
            return response

        app.add_api_route(
            path,
            guarded,
            methods=[method],
            operation_id=handler.__name__,
            summary=(handler.__doc__ or "").splitlines()[0],
            openapi_extra=extra,
            response_model=None,
            **options,
        )

    async def generations(self, request: Request) -> Response:
        """Paint images; with `stream`, tell every decision as it is taken."""
        asked = await self._read(request)
        if isinstance(asked, Refused):
            return self._refuse(asked)
        card = self._card[1] if self._card is not None else await self._describe()
        if isinstance(card, Refused):
            return self._refuse(card)
        if asked.model is not None and not _is_called(card, asked.model):
            return self._refuse(_other_model(card))
        seed = asked.seed if asked.seed is not None else secrets.randbelow(2**32)
        admitted = self.gate.admit(_images(asked, seed))
        if isinstance(admitted, Refused):
            return self._refuse(admitted)
        return await self._answer(admitted, Answer(card, seed, asked.n), stream=asked.stream)

    async def _answer(self, generation: Generation, answer: Answer, *, stream: bool) -> Response:
        """The whole answer, or a stream that takes the generation over once there is something to tell."""
        outcome, taken_over, begun = "left", False, time.perf_counter()

        def ended(outcome: str) -> None:
            self.telemetry.count(outcome)
            if outcome == "ok":
                self.gate.took(time.perf_counter() - begun)

        try:
            while generation.unfinished:
                index, event = await generation.next()
                if isinstance(event, Refused):
                    outcome = outcome_of(event)
                    return self._refuse(event, counted=False)
                if stream:
                    taken_over = True
                    return EventStream(generation, answer, (index, event), ended)
                answer.add(index, event)
            outcome = "ok"
            return JSONResponse(answer.json())
        finally:
            if not taken_over:
                ended(outcome)
                await generation.close()

    async def models(self, request: Request) -> Response:
        """The model that is served, and which of its versions paints new images."""
        card = await self._describe()
        if isinstance(card, Refused):
            return self._refuse(card, counted=False)
        return JSONResponse({"object": "list", "data": [_told(card)]})

    async def model(self, request: Request) -> Response:
        """The same model by its name, which may contain slashes."""
        card = await self._describe()
        if isinstance(card, Refused):
            return self._refuse(card, counted=False)
        if not _is_called(card, request.path_params["name"]):
            return self._refuse(_other_model(card), counted=False)
        return JSONResponse(_told(card))

    async def healthz(self, request: Request) -> Response:
        """200 while an image could be painted, else 503."""
        card = await self._describe() if not self.gate.draining else _NOT_READY
        if isinstance(card, Refused):
            return self._refuse(card, counted=False)
        return JSONResponse({"status": "ok", "model": card.name, "version": card.version})

    async def metrics(self, request: Request) -> Response:
        """Counters, in Prometheus's text format."""
        return Response(self.telemetry.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self, request: Request) -> Response:
        """A page to try it on: the picture as it forms, with the decision under each step."""
        content, headers = page()
        return HTMLResponse(content, headers=headers)

    async def _read(self, request: Request) -> GenerationRequest | Refused:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return Refused(
                415, "send JSON, with content-type application/json", code="unsupported_media_type"
            )
        body = await read_body(request)
        return body if isinstance(body, Refused) else read_request(body)

    async def _describe(self) -> ModelCard | Refused:
        """The painters' card, asked for at most once a second.

        A request for images does with an older one: it may wait for a painter, longer than this would. While
        images are being painted the last one does too, as the question waits behind them.
        """
        if self._card is not None and time.monotonic() - self._card[0] < 1.0:
            return self._card[1]
        busy = self._card is not None and self.gate.heard_within(_READY_S)
        try:
            card = await asyncio.wait_for(self._painters.describe(), _READY_BUSY_S if busy else _READY_S)
        except TimeoutError:
            return self._card[1] if busy and self._card is not None else _NOT_READY
        except PainterLostError:
            return _NOT_READY
        self._card = (time.monotonic(), card)
        return card

    def _refuse(self, refused: Refused, *, counted: bool = True) -> Response:
        if counted:
            self.telemetry.count(outcome_of(refused))
        headers = {}
        if refused.status in (429, 503):
            headers["Retry-After"] = str(self.gate.retry_after_s)
        elif refused.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        elif refused.status in (408, 413):
            headers["Connection"] = "close"  # the rest of the body is not read
        return JSONResponse(error_body(refused), refused.status, headers)


def _images(asked: GenerationRequest, seed: int) -> list[PaintRequest]:
    return [
        PaintRequest(
            prompt=asked.prompt,
            seed=seed + number,
            size=asked.size,
            max_nfe=asked.max_nfe,
            quality_floor=asked.quality_floor,
            previews=asked.previews,
        )
        for number in range(asked.n)
    ]


def _told(card: ModelCard) -> dict[str, Any]:
    """A model as OpenAI's API has it, and what is ours."""
    listed = {"id": card.name, "object": "model", "created": 0, "owned_by": "addiffusion"}
    told = {"version": card.version, "size": card.size, "max_nfe": card.max_nfe, "quality": card.quality}
    return listed | told | {"num_steps": card.num_steps, "actions": list(card.actions)}


def _is_called(card: ModelCard, name: str) -> bool:
    """With or without its alias."""
    return name in (card.name, card.name.partition("@")[0])


def _other_model(card: ModelCard) -> Refused:
    return Refused(404, f"model: accepted: {card.name}", param="model", code="model_not_found")


async def _http_error(request: Request, error: Exception) -> Response:
    """No such path, or no such method there."""
    status = error.status_code if isinstance(error, HTTPException) else 400
    message = str(error.detail) if isinstance(error, HTTPException) else "not a request of this endpoint"
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse(error_body(Refused(status, message)), status, headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("an unexpected %s", type(error).__name__)
    log.debug("where it was raised", exc_info=error)
    return JSONResponse(error_body(Refused(500, "the server failed", kind="server_error")), 500)


def _only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}


_NOT_READY = Refused(503, "no painter is ready", kind="server_error", code=NOT_READY)
_GENERATIONS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": GenerationResponse,
        "description": "The images; with `stream`, server-sent events",
        "content": {"text/event-stream": {}},
    },
    **_ERRORS,
}
_REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": GenerationRequest.model_json_schema()}},
    }
}
