"""Who may speak to the endpoint, and how much: body size, time to send it, host name, token.

Always true here: what is refused is refused before it is read; the token itself is nowhere kept, only its
digest, and comparing takes the same time whatever was sent.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.serving.api import error_body
from cluster.serving.events import Refused

MAX_BODY_BYTES = 64 * 1024
"""A prompt of the greatest length takes a third of it, even where each character is escaped."""


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


class BodyLimit:
    """ASGI middleware: a body beyond the limit is answered with 413 and not read to its end.

    Ray's proxy hands a body on while it arrives, and drops the connection once this has answered.
    """

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is small enough."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _declared(scope) > self.max_bytes:
            await self._refuse(send)
            return
        if b"transfer-encoding" not in dict(scope["headers"]):
            await self.app(scope, receive, send)  # as long as was declared: the HTTP server sees to that
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                await self._refuse(send)
                return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)

    async def _refuse(self, send: Send) -> None:
        refused = Refused(413, f"the body has more than {self.max_bytes} bytes", code="body_too_large")
        content = json.dumps(error_body(refused)).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def _declared(scope: Scope) -> int:
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    return int(declared) if declared.isdigit() else 0
