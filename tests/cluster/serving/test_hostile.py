"""Whatever is sent, the answer is 4xx with a JSON error, and the endpoint goes on as before."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks

from cluster.serving import limits
from cluster.serving.front import Front
from cluster.serving.generation import Limits
from cluster.serving.limits import MAX_BODY_BYTES, AccessRules, digest_of
from tests.cluster.serving.painters import Desk, FakePainters, assert_is_error, at_desk

PATH = "/v1/images/generations"
INJECTIONS = (
    "'; DROP TABLE images; --",
    "<script>alert(1)</script>",
    "{{7*7}}${7*7}",
    "../../../../etc/passwd",
    "$(touch owned)",
    "\r\nSet-Cookie: a=b",
    "__class__.__mro__",
    "%s%n%x",
    "\u0000",
    "\u202e\u2066",
)


def hostile_bodies() -> list[bytes]:
    """At least 200 bodies, none of which is a request."""
    prompt = {"prompt": "a red circle"}
    wrong: list[object] = [None, True, 1, -1, 1.5, "", [], {}, [[]], {"a": {}}, "x" * 5000, 10**400, "NaN"]
    numbers = ("n", "seed", "max_nfe")
    bodies: list[object] = [
        {**prompt, name: value}
        for name in numbers
        for value in wrong
        if value is not None and not (value == 1 and value is not True)  # null is as good as left out
    ]
    bodies += [{"prompt": value} for value in wrong if value != "NaN"]
    not_null = [value for value in wrong if value is not None]
    sizes = [*not_null, *INJECTIONS, "0x0", "64", "64x64x64", "９x９"]
    bodies += [{**prompt, "size": value} for value in sizes]
    bodies += [{**prompt, "response_format": value} for value in [*not_null, "url", "pickle"]]
    bodies += [
        {**prompt, name: value} for name in ("stream", "previews") for value in not_null if value is not True
    ]
    elsewhere = {"quality": "hd", "background": "transparent", "output_format": "webp", "style": "vivid"}
    bodies += [{**prompt, name: value} for name, value in elsewhere.items()]
    bodies += [{**prompt, name: value} for name in elsewhere for value in not_null]
    bodies += [{**prompt, "partial_images": 4}, {**prompt, "output_compression": 50}]
    bodies += [{**prompt, "nobody": None}]
    bodies += [{**prompt, "model": value} for value in wrong if value is not None]
    bodies += [{**prompt, "model": value} for value in INJECTIONS]
    users: list[object] = [1, [], {}, "u" * 300]
    bodies += [{**prompt, "user": value} for value in users]
    bodies += [{**prompt, name: 1} for name in (*INJECTIONS, "__proto__", "constructor", "prompt ", "N")]
    bodies += [{"prompt": " " * 10}, {"prompt": "\n\t"}, {"prompt": "word " * 301}, {"prompt": "字" * 4001}]
    bodies += [{**prompt, "seed": 2**63}, {**prompt, "seed": 2**63 - 1, "n": 2}, {**prompt, "n": 11}]
    bodies += [{**prompt, "max_nfe": 10_001}, {**prompt, "previews": True}, {**prompt, "quality_floor": "1"}]
    bodies += [prompt["prompt"], 1, None, True, [prompt], [], {}]
    encoded = [json.dumps(body).encode() for body in bodies]
    encoded += [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b'{"prompt": "\xc3\x28"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "quality_floor": NaN}',
        b'{"prompt": "a", "quality_floor": Infinity}',
        b'{"prompt": "a", "quality_floor": 1e999}',
        b'{"prompt": "a"} {"prompt": "b"}',
        b'{"prompt": "a",}',
        b"prompt=a",
        b"\x80\x04\x95cos\nsystem\n(S'id'\ntR.",
        b"\x1f\x8b\x08\x00",
        b"[" * 30_000,
        b'{"prompt":' * 5_000,
        b'{"prompt": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b'{"user": ' + b'{"a":' * 9_000 + b"1" + b"}" * 9_000 + b"}",
        b'{"prompt": "' + b"a" * (MAX_BODY_BYTES + 1) + b'"}',
        b" " * (MAX_BODY_BYTES + 1),
        b'{"prompt": "a", "n": ' + b"9" * 60_000 + b"}",
    ]
    source = random.Random(0)
    encoded += [source.randbytes(source.randrange(1, 2_000)) for _ in range(40)]
    return encoded


def test_every_hostile_body_is_a_json_error_and_memory_stays_flat() -> None:
    bodies = hostile_bodies()
    assert len(bodies) >= 200

    async def use(desk: Desk) -> None:
        async def all_of_them() -> None:
            for body in bodies:
                response = await desk.client.post(
                    PATH, content=body, headers={"content-type": "application/json"}
                )
                assert_is_error(response)
                assert len(response.content) < 600, "what was sent is not repeated"

        await all_of_them()
        gc.collect()
        before = psutil.Process().memory_info().rss
        for _ in range(3):
            await all_of_them()
        gc.collect()
        assert psutil.Process().memory_info().rss - before < 16 * 2**20
        assert not desk.painters.asked
        assert (await desk.ask()).status_code == 200

    at_desk(use)


def test_any_text_may_be_painted() -> None:
    texts = (*INJECTIONS, "字" * 4000, "🦊🌲" * 100, "a\u0301" * 50, "ﷺ", "\U0010ffff", "a\u0000b")

    async def use(desk: Desk) -> None:
        for text in texts:
            assert (await desk.ask(prompt=text)).status_code == 200, text
        assert [request.prompt for request in desk.painters.asked] == list(texts)

    at_desk(use)


def test_a_body_without_end_is_not_read_to_its_end() -> None:
    async def use(desk: Desk) -> None:
        sent = itertools.count()

        async def endless() -> AsyncIterator[bytes]:
            while True:
                next(sent)
                yield b" " * 8192

        response = await asyncio.wait_for(
            desk.client.post(PATH, content=endless(), headers={"content-type": "application/json"}), 10
        )
        assert_is_error(response, 413)
        assert next(sent) * 8192 <= 2 * MAX_BODY_BYTES

    at_desk(use)


async def send_slowly(
    desk: Desk, headers: dict[str, str], pause_s: float
) -> tuple[list[dict[str, Any]], int]:
    """A chunked body that comes a byte at a time and never ends; what was answered, and how much was read."""
    answered: list[dict[str, Any]] = []
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        answered.append(message)

    usual = {"host": "127.0.0.1", "transfer-encoding": "chunked", "content-type": "application/json"}
    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in (usual | headers).items()],
    }
    await asyncio.wait_for(desk.app(scope, receive, send), 60)
    return answered, taken


def test_a_sender_that_dribbles_is_answered_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEND_S", 0.3)

    async def use(desk: Desk) -> None:
        answered, taken = await send_slowly(desk, {}, pause_s=0.01)
        assert answered[0]["status"] == 408
        assert (b"connection", b"close") in answered[0]["headers"]
        assert taken >= 1

    at_desk(use)


def test_nothing_is_read_of_who_has_no_token() -> None:
    async def use(desk: Desk) -> None:
        wrong: list[dict[str, str]] = [{}, {"authorization": "Bearer wrong"}]
        for headers in wrong:
            answered, taken = await send_slowly(desk, headers, pause_s=3600.0)
            assert answered[0]["status"] == 401
            assert taken == 0

    at_desk(use, rules=AccessRules(token_digest=digest_of("a-token-of-some-length")))


@pytest.mark.parametrize("name", ["X-Request-Timeout-Seconds", "x-request-disconnect-disabled"])
def test_what_ray_s_proxy_obeys_is_no_client_s_to_say(name: str) -> None:
    from ray.serve._private import constants

    obeyed = (
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
    )
    assert name.lower() in obeyed

    async def use(desk: Desk) -> None:
        response = await desk.client.post(PATH, json={"prompt": "a red circle"}, headers={name: "?1"})
        assert assert_is_error(response, 400)["code"] == "unknown_header"
        assert not desk.painters.asked

    at_desk(use)


def test_wrong_paths_and_methods_are_json_errors_too() -> None:
    async def use(desk: Desk) -> None:
        for path in (
            "/nope",
            "/v1",
            "/docs",
            "/v1/images/../../etc/passwd",
            "/%00",
            "/v1/images/generations/x",
        ):
            assert_is_error(await desk.client.get(path), 404)
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert_is_error(await desk.client.request(method, PATH), 405)

    at_desk(use)


CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
schema = schemathesis.openapi.from_asgi(
    "/openapi.json", Front(FakePainters(), Limits(), AccessRules(local_only=False)).app()
)


@schema.parametrize()
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_operation_answers_as_the_openapi_description_says(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(checks=CHECKS)
