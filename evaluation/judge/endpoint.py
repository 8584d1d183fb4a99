"""Asks an endpoint that speaks OpenAI's chat protocol, patiently.

Always true here: a request that may succeed later (rate limits, server errors, lost connections, answers that
are not the protocol) is sent again, after the time the server asks for or a growing pause, and everyone
waits who shares the endpoint. What cannot succeed is said at once. The key is read from the environment,
goes into one header, follows no redirect, and is cut out of whatever is passed on.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from actors.errors import UserError
from evaluation.judge.config import JudgeConfig

ATTEMPTS = 6
DEADLINE_S = 120.0
"""For one whole answer, however slowly it drips."""
LONGEST_WAIT_S = 300.0
"""A server that wants more patience is out of quota."""
LARGEST_ANSWER = 1 << 20
_AGAIN = {408, 409, 425, 429}
_SETUP = {401, 402, 403, 404, 405}
_SHOWN = 200


class EndpointError(RuntimeError):
    """One question has no answer; another one may have."""


class _AgainError(Exception):
    """Worth another attempt, after `wait_s` where the server has said so."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Reply:
    """A judge's words; tokens as the server counted them, None where it did not."""

    text: str
    model: str
    input_tokens: int | None
    output_tokens: int | None


class ChatEndpoint:
    """A judge's endpoint; may be shared by threads. A context manager.

    Raises UserError if the key's variable is not set.
    """

    def __init__(
        self,
        judge: JudgeConfig,
        *,
        attempts: int = ATTEMPTS,
        deadline_s: float = DEADLINE_S,
        first_pause_s: float = 1.0,
    ) -> None:
        self.judge = judge
        self._key = _key(judge)
        self._attempts = attempts
        self._deadline_s = deadline_s
        self._first_pause_s = first_pause_s
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._random = random.Random(0)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(deadline_s, connect=10.0))

    def __enter__(self) -> ChatEndpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def stop(self) -> None:
        """Whoever waits for another attempt gives up, in any thread."""
        self._stopped.set()

    def ask(self, request: Mapping[str, Any]) -> Reply:
        """The reply to a chat completion request.

        Raises UserError where no question can succeed (a wrong key, address or model), EndpointError where
        this one did not.
        """
        for attempt in range(1, self._attempts + 1):
            self._wait()
            try:
                return self._once(request)
            except _AgainError as error:
                wait_s = error.wait_s
                if wait_s is not None and wait_s > LONGEST_WAIT_S:
                    raise EndpointError(f"{error}; it asks for {wait_s:.0f} s of patience") from error
                if attempt == self._attempts:
                    raise EndpointError(f"{error}, {attempt} times") from error
                self._pause(wait_s, attempt)
        raise AssertionError("unreachable")

    def _once(self, request: Mapping[str, Any]) -> Reply:
        started = time.monotonic()
        body = b""
        try:
            with self._client.stream("POST", self.judge.url, json=dict(request)) as response:
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > LARGEST_ANSWER:
                        raise _AgainError(f"an answer of more than {LARGEST_ANSWER >> 20} MiB")
                    if time.monotonic() - started > self._deadline_s:
                        raise _AgainError(f"no whole answer in {self._deadline_s:g} s")
        except httpx.TimeoutException as error:
            raise _AgainError(f"no answer in {self._deadline_s:g} s") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _AgainError(self._safe(f"{type(error).__name__}: {error}")) from error
        status = response.status_code
        if status == 200:
            return self._read(body)
        reason = self._safe(f"{status} {response.reason_phrase}: {body.decode('utf-8', 'replace')}")
        if status in _AGAIN or status >= 500:
            raise _AgainError(reason, _retry_after(response.headers))
        if status in _SETUP or 300 <= status < 400:
            raise UserError(f"{self.judge.url} answers {reason}; check --base-url, --model and the key")
        raise EndpointError(reason)

    def _read(self, body: bytes) -> Reply:
        try:
            values = json.loads(body)
            text = values["choices"][0]["message"]["content"]
            usage = values.get("usage") or {}
            counted = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            tokens = [int(value) if isinstance(value, (int, float)) else None for value in counted]
            model = str(values.get("model", self.judge.model))
        except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            said = self._safe(body.decode("utf-8", "replace"))
            raise _AgainError(f"not a chat completion: {said}") from error
        return Reply(self._safe(text, None) if isinstance(text, str) else "", self._safe(model), *tokens)

    def _wait(self) -> None:
        while True:
            with self._lock:
                left = self._not_before - time.monotonic()
            if left <= 0:
                return
            self._rest(left)

    def _pause(self, wait_s: float | None, attempt: int) -> None:
        """Everybody waits as long as a server asks for; else who has failed pauses, longer every time."""
        if wait_s is not None:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + wait_s)
            return
        with self._lock:
            share = self._random.uniform(0.5, 1.0)
        self._rest(share * min(60.0, self._first_pause_s * 2 ** (attempt - 1)))

    def _rest(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise EndpointError("stopped while it waited")

    def _safe(self, text: str, length: int | None = _SHOWN) -> str:
        """One line without the key, which can be written: half a pair of surrogates cannot."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        if self._key:
            text = text.replace(self._key, "[key]")
        return " ".join(text.split())[:length]


def _key(judge: JudgeConfig) -> str | None:
    if judge.key_variable is None:
        return None
    key = os.environ.get(judge.key_variable, "").strip()
    if not key:
        raise UserError(f"{judge.key_variable} is not set; put the key of {judge.base_url} into it")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"{judge.key_variable} holds something that is no key")
    return key


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds, from a number of them or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
