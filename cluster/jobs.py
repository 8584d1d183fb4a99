"""Jobs on a Ray cluster, by its job server: connect, follow, wait, stop, and what an end means.

Always true here: following a job never ends it; every line of its log is shown once, also where the
connection breaks; a server that does not answer is waited for, and then said to be away.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import typer

from actors.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESS = "http://127.0.0.1:8265"
"""Where `ray start --head` has its job server."""
STOPPED = 130
"""The exit code of a job that somebody stopped: what shells give for Ctrl-C."""
PATIENCE_S = 120.0
"""How long a job server may be away while a job is followed."""
_CONNECT_S = 10.0
_POLL_S = 1.0
#: What Ray's client says of a job that the server does not know.
_NOT_FOUND = "status code 404"
#: By these Ray's client overrides the address that it is given.
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_Answer = TypeVar("_Answer")


class _OutputError(Exception):
    """What a log is written to is closed, or full."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def default_address() -> str:
    """RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this machine's job server."""
    return next((os.environ[name] for name in _OVERRIDES if os.environ.get(name)), ADDRESS)


def connect(address: str | None = None) -> JobSubmissionClient:
    """A client of the job server at `address`, or at the default one. Raises UserError if none answers."""
    import ray.exceptions
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    address = address or default_address()
    hint = "start a cluster with `ray start --head`, or give the --address of its dashboard"
    try:
        url = _reach(address)
        with _no_overrides():
            return JobSubmissionClient(url)
    except ray.exceptions.AuthenticationError as error:
        raise UserError(
            f"--address={address}: wants a token; give this process the cluster's: RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from error
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--address={address}: cannot connect ({reason}); {hint}") from error


def details(client: JobSubmissionClient, job: str) -> JobDetails:
    """What the server knows of a job. Raises UserError if that is nothing."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if _NOT_FOUND not in str(error):
            raise
        known = ", ".join(sorted(each.submission_id for each in client.list_jobs() if each.submission_id))
        raise UserError(f"job '{job}': not found; known: {known or 'none'}") from error


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> JobDetails:
    """Pass a job's log on as it grows, until the job has ended; gives how it ended."""
    import aiohttp

    shown = 0

    async def stream() -> None:
        nonlocal shown
        passed = 0  # the server begins anew with each connection
        async for chunk in client.tail_job_logs(job):
            fresh = chunk[max(shown - passed, 0) :]
            passed += len(chunk)
            if fresh:
                shown = passed
                try:
                    write(fresh)
                except OSError as error:  # our own output's, not the connection's
                    raise _OutputError(error) from error

    while True:
        try:
            with suppress(aiohttp.ClientError, OSError, RuntimeError):  # the server says whether it goes on
                asyncio.run(stream())
        except _OutputError as error:
            raise error.error from None
        found = _patient(lambda: details(client, job))
        if found.status.is_terminal():
            whole = _patient(lambda: client.get_job_logs(job))
            if len(whole) > shown:
                write(whole[shown:])
            return found
        time.sleep(_POLL_S)


def watch(client: JobSubmissionClient, job: str, address: str | None) -> JobDetails | None:
    """Print a job's log until the job has ended; None if Ctrl-C came first, which ends the watching only."""
    try:
        return follow(client, job, _show)
    except KeyboardInterrupt:
        typer.echo(f"\nthe job goes on; {how_to(job, address)}", err=True)
        return None


def how_to(job: str, address: str | None) -> str:
    """What to type to follow a job, and to stop it."""
    job += "" if address is None else f" --address {address}"
    return f"follow it: addiffusion jobs logs --follow {job}; stop it: addiffusion jobs stop {job}"


def stop(client: JobSubmissionClient, job: str) -> JobDetails:
    """Stop a job, which may take its time to leave a checkpoint; gives how it ended."""
    found = details(client, job)
    if not found.status.is_terminal():
        client.stop_job(job)
    while not (found := _patient(lambda: details(client, job))).status.is_terminal():
        time.sleep(_POLL_S)
    return found


def exit_code(ended: JobDetails) -> int:
    """The exit code of an ended job's own process; 1 where it had none, as its node was lost."""
    if ended.status == "SUCCEEDED":
        return 0
    if ended.status == "STOPPED":
        return STOPPED
    code: int = ended.driver_exit_code or 1
    return code if code > 0 else 128 - code


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _reach(address: str) -> str:
    """The address to hand to Ray's client, which would wait for minutes where nobody listens.

    HOST:PORT is to Ray what RAY_ADDRESS says on a cluster's nodes, not the job server's; where HTTP is spoken
    there, the job server's is what was meant.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.scheme in ("http", "https"):
        if parts.hostname is None:
            raise ValueError("no host in it")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_S).close()
    elif not parts.scheme and parts.hostname is not None and parts.port is not None:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_CONNECT_S)
        connection.connect()
        try:
            connection.request("GET", "/api/version")
            connection.getresponse()
        except (http.client.HTTPException, OSError):
            return address
        finally:
            connection.close()
        return f"http://{address}"
    return address


@contextmanager
def _no_overrides() -> Iterator[None]:
    """Ray's environment variables aside, which would win over the address that the user gave."""
    kept = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _patient(ask: Callable[[], _Answer]) -> _Answer:
    """The server's answer, asked for again while it does not answer. Raises UserError when patience ends."""
    import requests

    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except (requests.RequestException, RuntimeError) as error:
            if time.monotonic() > end:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(
                    f"the job server has not answered for {PATIENCE_S:.0f} s ({reason[:200]}); the job may "
                    "still run: ask again with addiffusion jobs status ID"
                ) from error
        time.sleep(_POLL_S)
