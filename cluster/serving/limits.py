"""Who may speak to the endpoint, and how much: body size, time to send it, host name, token.

Always true here: nothing of a body is read before host name and token are found right, and then for a limited
time; the token itself is nowhere kept, only its digest, and comparing takes the same time whatever was sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request

from cluster.serving.events import Refused

MAX_BODY_BYTES = 64 * 1024
"""A prompt of the greatest length takes a third of it, even where each character is escaped."""
SEND_S = 20.0
"""So long a client may take to send a body."""
_RAYS_OWN = ("x-request-timeout-seconds", "x-request-disconnect-disabled")
"""By these headers Ray's proxy lets a client change its deadline, and hide that it has left."""


@dataclass(frozen=True)
class AccessRules:
    """local_only: answer to loopback names alone; token_digest: of the token, where one is asked for."""

    local_only: bool = True
    token_digest: bytes | None = None

    def check_host(self, request: Request) -> Refused | None:
        """A page elsewhere can lead its own name to a loopback address; it is not answered."""
        if not self.local_only or is_loopback(_host_of(request)):
            return None
        return Refused(421, "this server answers on a loopback address only", code="wrong_host")

    def check_headers(self, request: Request) -> Refused | None:
        """Who has left frees the slots, whatever they ask of Ray's proxy."""
        for name in _RAYS_OWN:
            if name in request.headers:
                return Refused(400, f"the header {name} is not accepted here", code="unknown_header")
        return None

    def check_token(self, request: Request) -> Refused | None:
        """What is wrong with the request's token."""
        if self.token_digest is None:
            return None
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        matches = hmac.compare_digest(digest_of(token.strip()), self.token_digest)
        if matches and kind.lower() == "bearer":
            return None
        return Refused(
            401,
            "give the token as `Authorization: Bearer TOKEN`",
            kind="authentication_error",
            code="invalid_api_key",
        )


def digest_of(token: str) -> bytes:
    """What is kept and compared instead of the token."""
    return hashlib.sha256(token.encode()).digest()


def is_loopback(host: str) -> bool:
    """Whether this is a name or address of the machine itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(request: Request) -> str:
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


async def read_body(request: Request) -> bytes | Refused:
    """The whole body, however it is sent, or why it was not read to its end.

    Ray's proxy hands a body on while it arrives, and drops the connection once it is answered.
    """
    too_large = Refused(413, f"the body has more than {MAX_BODY_BYTES} bytes", code="body_too_large")
    if _declared(request) > MAX_BODY_BYTES:
        return too_large
    body = b""
    try:
        async with asyncio.timeout(SEND_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    return too_large
    except TimeoutError:
        return Refused(408, f"the request took more than {SEND_S:g} s to arrive", code="timeout")
    except ClientDisconnect:
        return Refused(400, "the connection was closed before the whole body was sent")
    return body


def _declared(request: Request) -> int:
    declared = request.headers.get("content-length", "0")
    return int(declared) if declared.isascii() and declared.isdigit() else 0
