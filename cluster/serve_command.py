"""`addiffusion serve`: the champion behind an HTTP endpoint, until it is asked to stop.

Always true here: everything that can be wrong is said before Ray is started; beyond this machine nothing is
served without a token; what was asked before the end is answered.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from actors.errors import UserError
from cluster.serving.limits import digest_of, is_loopback

MIN_TOKEN_CHARACTERS = 16
INTERRUPTED = 130
"""The exit code that shells give for Ctrl-C."""
_SETTLING_S = 30.0
"""A Ray of one's own has nobody to wait for, but processes of an earlier one take a moment to end."""


@dataclass(frozen=True)
class ServeOptions:
    """As the command line takes them."""

    host: str
    port: int
    replicas: int
    slots: int
    max_queue: int
    timeout_s: float
    token_variable: str | None
    address: str | None
    poll_s: float
    device: str | None

    def check(self) -> None:
        """UserError for options that mean nothing."""
        for option, value, least in (
            ("--replicas", self.replicas, 1),
            ("--slots", self.slots, 1),
            ("--max-queue", self.max_queue, 0),
        ):
            if value < least:
                raise UserError(f"{option}={value}: give a whole number from {least}")
        for option, seconds in (("--timeout-s", self.timeout_s), ("--poll-s", self.poll_s)):
            if not 0.0 < seconds < float("inf"):
                raise UserError(f"{option}={seconds:g}: give a number above 0")
        if not 1 <= self.port <= 65535:
            raise UserError(f"--port={self.port}: give a whole number from 1 to 65535")

    def token(self) -> str | None:
        """The token, taken out of its environment variable, as Ray's processes inherit the environment.

        UserError where there has to be one.
        """
        if self.token_variable is None:
            if is_loopback(self.host):
                return None
            raise UserError(
                f"--host={self.host}: others can reach it, so give --token-variable NAME, the environment"
                " variable that holds a token"
            )
        token = os.environ.get(self.token_variable, "").strip()
        if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable():
            raise UserError(
                f"--token-variable={self.token_variable}: it has to hold at least {MIN_TOKEN_CHARACTERS}"
                " printable characters"
            )
        del os.environ[self.token_variable]
        return token


def serve_model(
    model: str,
    options: ServeOptions,
    *,
    runs_dir: Path,
    tracking_uri: str | None,
    stop: threading.Event | None = None,
) -> int:
    """Serve until SIGTERM or Ctrl-C (or until `stop` is set); 0 once everything admitted is answered.

    130 if the signal came before anything was served.
    """
    options.check()
    token = options.token()
    from cluster.serving.models import ModelSource, check_source

    source = ModelSource(model, runs_dir.absolute(), tracking_uri, options.device)
    version = check_source(source)
    trained = source.settings(version)
    device = options.device or trained.evaluation.device

    import ray

    from cluster.serving import application
    from cluster.serving.painter import PainterSettings
    from learner.connection import connected

    if options.address is None and not ray.is_initialized():
        application.check_port(options.host, options.port)
    settings = application.ServingSettings(
        host=options.host,
        port=options.port,
        replicas=options.replicas,
        max_queue=options.max_queue,
        timeout_s=options.timeout_s,
        token_digest=None if token is None else digest_of(token),
        local_only=is_loopback(options.host),
        gpus=1.0 if device.startswith("cuda") else 0.0,
        painter=PainterSettings(slots=options.slots, poll_s=options.poll_s),
    )
    typer.echo(f"starting {source.public_name}, version {version} ...")
    stopping = stop if stop is not None else threading.Event()
    patience_s = _SETTLING_S if options.address is None else trained.run.resources.patience_s
    with contextlib.ExitStack() as running:
        running.enter_context(
            connected(options.address, max(os.cpu_count() or 1, options.replicas + 1), "--address")
        )
        signals = running.enter_context(_until_signal(stopping))  # after ray.init, which takes SIGTERM over
        try:
            application.check_room(settings, patience_s, typer.echo)
            ingress = running.enter_context(application.served(source, settings))
        except _SignalledError:
            typer.echo("stopped before it was ready")
            return INTERRUPTED
        signals.ready = True
        shown = f"[{options.host}]" if ":" in options.host else options.host
        typer.echo(f"ready: http://{shown}:{options.port}")
        stopping.wait()
        typer.echo("stopping: no new requests; those under way are finished")
        try:
            ingress.drain.remote().result(timeout_s=options.timeout_s + 5.0)
        except TimeoutError:
            typer.echo("some were not finished in time", err=True)
    typer.echo("stopped")
    return 0


class _SignalledError(BaseException):
    """A signal, while nothing is served yet that would have to be finished."""


class _until_signal:  # noqa: N801  (a context manager, read as a verb)
    """Once `ready`, SIGTERM and Ctrl-C set the event, and a second Ctrl-C ends the process as usual; before
    that they raise _SignalledError, whatever is being waited for.
    """

    def __init__(self, stopping: threading.Event) -> None:
        self.ready = False
        self._stopping = stopping
        self._before: dict[int, Callable[..., object] | int | None] = {}

    def __enter__(self) -> _until_signal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        again = self._stopping.is_set()
        self._stopping.set()
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not again and not self.ready:
            raise _SignalledError
