"""The endpoint on Ray Serve: an ingress, and painters behind it.

Always true here: what is started here is stopped here; the ingress and Ray's proxy get the token's digest
only; a painter's process is replaced when it dies, and the ingress begins its images again elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import (
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
from ray.serve.schema import LoggingConfig

from actors.errors import UserError
from cluster.serving.events import ModelCard, PainterLostError, PaintEvent, PaintRequest
from cluster.serving.front import Front
from cluster.serving.generation import Limits
from cluster.serving.limits import AccessRules
from cluster.serving.models import ModelSource
from cluster.serving.painter import Painter, PainterSettings
from learner.placement import Demand
from learner.session import await_room

APP = "addiffusion"
_LOST = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
_SPARE = 4
"""Calls beside its images that a painter answers, such as whether it is there."""
_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


@dataclass(frozen=True)
class ServingSettings:
    """Everything that the endpoint is started with; limits count images, and seconds of a request."""

    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    max_queue: int = 64
    timeout_s: float = 120.0
    token_digest: bytes | None = None
    local_only: bool = True
    gpus: float = 0.0
    """Of each painter."""
    cpus: float = 1.0
    painter: PainterSettings = field(default_factory=PainterSettings)

    @property
    def limits(self) -> Limits:
        """Twice the slots are sent to the painters, so that a slot that gets free is filled at once."""
        concurrency = 2 * self.painter.slots * self.replicas
        return Limits(concurrency, self.max_queue, self.timeout_s)


class RayPainters:
    """The painters, by a Serve handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def paint(self, request: PaintRequest) -> AsyncGenerator[PaintEvent, None]:
        """Events of one image; raises PainterLostError."""
        events = self._handle.options(stream=True).paint.remote(request)
        try:
            async for event in events:
                yield event
        except _LOST as error:
            raise PainterLostError(type(error).__name__) from None
        finally:
            events.cancel()

    async def describe(self) -> ModelCard:
        """Of any painter; raises PainterLostError."""
        try:
            card: ModelCard = await self._handle.describe.remote()
        except (*_LOST, RayTaskError) as error:
            raise PainterLostError(type(error).__name__) from None
        return card


@serve.ingress()
class Ingress:
    """The front on Ray Serve."""

    def __init__(self, painters: Any, settings: ServingSettings) -> None:
        rules = AccessRules(settings.local_only, settings.token_digest)
        self._front = Front(RayPainters(painters), settings.limits, rules)

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Ray Serve once in each replica."""
        return self._front.app()

    async def drain(self) -> None:
        """Refuse what is new; returns when everything that was admitted has ended."""
        await self._front.gate.drain()
        await asyncio.sleep(0.2)  # the last answer is still on its way through Ray's proxy


def deploy(source: ModelSource, settings: ServingSettings, painter: type = Painter) -> Any:
    """Start Ray Serve on the Ray that is connected; gives the ingress's handle once images can be painted.

    painter: what paints, made with source and settings.painter.

    Raises UserError where no painter can start.
    """
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=settings.host, port=settings.port),
        logging_config=_QUIET,
    )
    painters = serve.deployment(
        painter,
        name="painter",
        num_replicas=settings.replicas,
        max_ongoing_requests=2 * settings.painter.slots + _SPARE,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        health_check_period_s=2.0,
        graceful_shutdown_timeout_s=5.0,
    )
    ingress = serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=1,
        max_ongoing_requests=10_000,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=5.0,
    )
    application = ingress.bind(painters.bind(source, settings.painter), settings)
    try:
        return serve.run(application, name=APP, route_prefix="/", logging_config=_QUIET)
    except RuntimeError as error:
        raise UserError(f"no painter could start: {_reason()}") from error


def check_room(settings: ServingSettings, patience_s: float, say: Callable[[str], None]) -> None:
    """Wait until the connected Ray has room for all painters, an autoscaler being told.

    Raises UserError after `patience_s`, where Serve itself would go on waiting, and where Serve runs already.
    """
    _check_is_alone()
    painters = Demand("painter", "--replicas", settings.replicas, settings.cpus, settings.gpus, None, "")
    await_room([painters], patience_s, say)


@contextlib.contextmanager
def served(source: ModelSource, settings: ServingSettings, painter: type = Painter) -> Iterator[Any]:
    """`deploy`, and Serve's end with the context.

    Raises UserError where Serve runs already: its port and host are fixed then, and its end is not ours.
    """
    _check_is_alone()
    try:
        yield deploy(source, settings, painter)
    finally:
        serve.shutdown()


def _check_is_alone() -> None:
    try:
        serve.context._get_global_client()
    except RayServeException:
        return
    raise UserError("Ray Serve is running on this Ray already; stop it first (serve shutdown)")


def _reason() -> str:
    """The last line of what a painter said when it failed."""
    deployments = serve.status().applications[APP].deployments
    told = [line.strip() for deployment in deployments.values() for line in deployment.message.splitlines()]
    errors = [line.partition("UserError: ")[2] for line in told if "UserError: " in line]
    return (errors or [line for line in told if "Error" in line] or told or ["see Ray's logs"])[-1]


def check_port(host: str, port: int) -> None:
    """UserError for an address that this machine does not have, or a port that something else listens on."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"--host={host}: no address of this machine ({error.strerror})") from error
    with socket.socket(found[0], socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(found[4])
        except OSError as error:
            raise UserError(f"--host={host} --port={port}: cannot listen there ({error.strerror})") from error


def free_port() -> int:
    """A port of the loopback address that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
