"""The ingress on fake painters: OpenAI's shape, streams, queue, retries, deadline, token, drain."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.serving.api import GenerationRequest
from cluster.serving.events import PaintRequest, Refused
from cluster.serving.generation import LAST_TRY, Limits
from cluster.serving.limits import AccessRules, digest_of
from tests.cluster.serving.painters import (
    CARD,
    Desk,
    FakePainters,
    assert_is_error,
    at_desk,
    events_of,
    painted,
    png_of,
)


def test_the_answer_is_what_openai_clients_read_and_what_it_cost() -> None:
    async def use(desk: Desk) -> None:
        response = await desk.ask(
            model="shapes@champion", n=3, seed=7, size="64x64", user="someone", max_nfe=9
        )
        assert response.status_code == 200
        body = response.json()
        assert isinstance(body["created"], int)
        assert (body["model"], body["model_version"], body["size"]) == ("shapes@champion", "3", "64x64")
        assert [image["seed"] for image in body["data"]] == [7, 8, 9]
        for image in body["data"]:
            assert png_of(image) == painted(PaintRequest("a red circle", image["seed"], max_nfe=9))
            assert (image["nfe"], image["looks"], image["attempts"], image["cost"]) == (5, 1, 1, 5.3)
            assert [decision["action"] for decision in image["decisions"]] == ["continue", "look", "stop"]
            assert image["decisions"][-1]["image_reward"] == 0.1235

    at_desk(use)


def test_what_openais_client_sends_for_nothing_in_particular_is_taken() -> None:
    """An option that is None there is null here; others say by default what is done anyway."""
    defaults: dict[str, object] = {
        "quality": "auto",
        "background": "auto",
        "moderation": "low",
        "output_format": "png",
        "output_compression": 100,
        "partial_images": 2,
        "safety_identifier": "someone",
    }

    async def use(desk: Desk) -> None:
        plain = (await desk.ask(seed=7)).json()["data"]
        names = {*GenerationRequest.model_fields} - {"prompt", "seed"}
        for body in (dict.fromkeys(names), defaults):
            response = await desk.ask(seed=7, **body)
            assert response.status_code == 200, response.text
            assert response.json()["data"] == plain
        assert (await desk.ask(prompt=None)).status_code == 400

    at_desk(use)


def test_without_a_seed_one_is_drawn_and_told() -> None:
    async def use(desk: Desk) -> None:
        seeds = {(await desk.ask()).json()["data"][0]["seed"] for _ in range(4)}
        assert len(seeds) > 1
        assert seeds == {request.seed for request in desk.painters.asked}

    at_desk(use)


def test_a_stream_tells_every_decision_and_ends_with_the_image() -> None:
    async def use(desk: Desk) -> None:
        response = await desk.ask(stream=True, previews=True, seed=1)
        assert response.headers["content-type"].startswith("text/event-stream")
        events = events_of(response.text)
        names = [name.removeprefix("image_generation.") for name, _ in events]
        assert names == ["started", "decision", "decision", "decision", "completed"]
        assert all(data["type"] == name for name, data in events)
        assert {key: events[1][1][key] for key in ("action", "step", "timestep", "nfe")} == {
            "action": "continue",
            "step": 3,
            "timestep": 601.0,
            "nfe": 4,
        }
        assert events[1][1]["preview"].startswith("data:image/png;base64,")
        assert png_of(events[-1][1]) == painted(PaintRequest("a red circle", 1))
        assert events[-1][1]["decisions"][0]["action"] == "continue"

    at_desk(use)


def test_a_prompt_cannot_forge_events() -> None:
    async def use(desk: Desk) -> None:
        prompt = "a\n\nevent: error\ndata: {}\n\n</script>"
        events = events_of((await desk.ask(prompt=prompt, stream=True, seed=1)).text)
        assert "error" not in [name for name, _ in events]
        assert png_of(events[-1][1]) == painted(PaintRequest(prompt, 1))

    at_desk(use)


def test_images_of_a_painter_that_died_begin_again() -> None:
    async def use(desk: Desk) -> None:
        body = (await desk.ask(seed=5)).json()
        assert png_of(body["data"][0]) == painted(PaintRequest("a red circle", 5))
        assert [decision["action"] for decision in body["data"][0]["decisions"]] == [
            "continue",
            "look",
            "stop",
        ]
        assert len(desk.painters.asked) == 3
        assert desk.metric("image_retries_total") == 2

    at_desk(use, painters=lambda: FakePainters(deaths=2))


def test_a_stream_says_that_it_begins_again() -> None:
    async def use(desk: Desk) -> None:
        names = [name.rpartition(".")[2] for name, _ in events_of((await desk.ask(stream=True)).text)]
        assert names[:4] == ["started", "decision", "retried", "started"]
        assert names[-1] == "completed"

    at_desk(use, painters=lambda: FakePainters(deaths=1))


def test_an_image_that_loses_every_painter_ends() -> None:
    async def use(desk: Desk) -> None:
        assert_is_error(await desk.ask(), 500)
        assert len(desk.painters.asked) == LAST_TRY
        assert desk.metric("image_retries_total") == LAST_TRY - 1

    at_desk(use, painters=lambda: FakePainters(deaths=100))


def test_beyond_the_queue_is_429_and_what_was_admitted_is_answered() -> None:
    async def use(desk: Desk) -> None:
        desk.painters.hold = asyncio.Event()
        asked = [asyncio.create_task(desk.ask(seed=seed)) for seed in range(5)]
        while desk.painters.painting < 2:
            await asyncio.sleep(0.01)
        refused = await desk.ask(seed=5)
        assert assert_is_error(refused, 429)["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert desk.metric("slots_in_use") == 2
        assert desk.metric("images_queued") == 3
        desk.painters.hold.set()
        answers = [await task for task in asked]
        assert [answer.status_code for answer in answers] == [200] * 5
        assert desk.painters.most == 2
        assert desk.metric('requests_total{outcome="busy"}') == 1
        assert desk.metric('requests_total{outcome="ok"}') == 5

    at_desk(use, limits=Limits(concurrency=2, max_queue=3))


def test_more_images_than_are_ever_taken_are_not_asked_to_come_back() -> None:
    async def use(desk: Desk) -> None:
        assert assert_is_error(await desk.ask(n=4), 400)["param"] == "n"
        assert (await desk.ask(n=3)).status_code == 200

    at_desk(use, limits=Limits(concurrency=2, max_queue=1))


@pytest.mark.parametrize("stream", [False, True])
def test_at_the_deadline_it_says_so_and_the_slot_is_free(stream: bool) -> None:
    async def use(desk: Desk) -> None:
        desk.painters.hold = asyncio.Event()
        response = await desk.ask(stream=stream)
        if stream:
            name, data = events_of(response.text)[-1]
            assert (name, data["error"]["code"]) == ("error", "timeout")
        else:
            assert assert_is_error(response, 504)["code"] == "timeout"
        assert desk.metric('requests_total{outcome="timeout"}') == 1

    at_desk(use, limits=Limits(timeout_s=0.2))


def test_who_leaves_frees_the_slot() -> None:
    async def use(desk: Desk) -> None:
        desk.painters.hold = asyncio.Event()
        for stream in (False, True):
            asked = asyncio.create_task(desk.ask(stream=stream))
            while not desk.painters.painting:
                await asyncio.sleep(0.01)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            while desk.painters.painting:
                await asyncio.sleep(0.01)
        assert desk.metric('requests_total{outcome="left"}') == 2

    at_desk(use)


def test_draining_refuses_what_is_new_and_finishes_what_is_not() -> None:
    async def use(desk: Desk) -> None:
        desk.painters.hold = asyncio.Event()
        asked = asyncio.create_task(desk.ask(seed=1))
        while not desk.painters.painting:
            await asyncio.sleep(0.01)
        drained = asyncio.create_task(desk.front.gate.drain())
        await asyncio.sleep(0)
        refused = await desk.ask()
        assert assert_is_error(refused, 503)["code"] == "draining"
        assert "retry-after" in refused.headers
        assert_is_error(await desk.client.get("/healthz"), 503)
        assert not drained.done()
        desk.painters.hold.set()
        assert (await asked).status_code == 200
        await asyncio.wait_for(drained, 5)

    at_desk(use)


def test_healthz_is_200_only_while_a_painter_answers() -> None:
    async def use(desk: Desk) -> None:
        desk.painters.ready = False
        assert_is_error(await desk.client.get("/healthz"), 503)
        assert_is_error(await desk.ask(), 503)
        assert desk.metric('requests_total{outcome="not_ready"}') == 1
        assert desk.metric('requests_total{outcome="draining"}') == 0
        desk.painters.ready = True
        assert (await desk.client.get("/healthz")).json()["status"] == "ok"

    at_desk(use)


def test_healthz_does_not_wait_behind_images() -> None:
    async def use(desk: Desk) -> None:
        assert (await desk.client.get("/healthz")).status_code == 200
        desk.painters.hold = asyncio.Event()
        desk.painters.stuck = True  # every place of a painter is taken by images
        asked = asyncio.create_task(desk.ask())
        while not desk.painters.painting:
            await asyncio.sleep(0.01)
        desk.front._card = (-math.inf, CARD)  # too old to be told again without asking
        assert (await asyncio.wait_for(desk.client.get("/healthz"), 4)).status_code == 200
        desk.painters.hold.set()
        assert (await asked).status_code == 200

    at_desk(use)


def test_the_size_is_that_of_the_version_that_painted() -> None:
    async def use(desk: Desk) -> None:
        assert (await desk.ask()).json()["size"] == "64x64"
        desk.painters.size = "96x96"
        assert (await desk.ask()).json()["size"] == "96x96"

    at_desk(use)


def test_a_request_waits_for_painters_that_were_there_before() -> None:
    async def use(desk: Desk) -> None:
        assert (await desk.ask(seed=1)).status_code == 200
        desk.painters.ready = False
        desk.painters.deaths = 1
        assert (await desk.ask(seed=2)).status_code == 200

    at_desk(use)


def test_models_and_refusals_of_the_painter() -> None:
    async def use(desk: Desk) -> None:
        (model,) = (await desk.client.get("/v1/models")).json()["data"]
        assert (model["id"], model["object"], model["version"]) == ("shapes@champion", "model", "3")
        for name in ("shapes@champion", "shapes", "shapes%40champion"):
            assert (await desk.client.get(f"/v1/models/{name}")).json() == model
        for name in ("dall-e-3", "shapes@candidate", "a/b", "%00", ""):
            other = await desk.client.get(f"/v1/models/{name}")
            assert assert_is_error(other, 404)["code"] == "model_not_found"
        assert assert_is_error(await desk.ask(model="dall-e-3"), 404)["code"] == "model_not_found"
        assert (await desk.ask(model="shapes")).status_code == 200
        desk.painters.refusal = Refused(422, "no", param="quality_floor", code="quality_floor_unreachable")
        for stream in (False, True):
            assert assert_is_error(await desk.ask(stream=stream), 422)["param"] == "quality_floor"

    at_desk(use)


def test_metrics_are_prometheus_text() -> None:
    async def use(desk: Desk) -> None:
        await desk.ask(n=2)
        await desk.ask(n=0)
        response = await desk.client.get("/metrics")
        families = {family.name: family for family in text_string_to_metric_families(response.text)}
        outcomes = {
            sample.labels["outcome"]: sample.value
            for sample in families["addiffusion_serving_requests"].samples
            if sample.name.endswith("_total")
        }
        assert {name for name, value in outcomes.items() if value} == {"ok", "invalid"}
        nfe = {sample.name: sample.value for sample in families["addiffusion_serving_image_nfe"].samples}
        assert nfe["addiffusion_serving_image_nfe_count"] == 2
        assert nfe["addiffusion_serving_image_nfe_sum"] == 10
        assert {"addiffusion_serving_request_seconds", "addiffusion_serving_slots_in_use"} <= set(families)

    at_desk(use)


TOKEN = "a-token-of-some-length"


def test_the_token_is_asked_for_where_something_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def use(desk: Desk) -> None:
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"}):
            desk.client.headers = httpx.Headers(headers)
            response = await desk.ask()
            assert assert_is_error(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
            for path in ("/v1/models", "/v1/models/shapes", "/metrics"):
                assert_is_error(await desk.client.get(path), 401)
            for path in ("/healthz", "/", "/openapi.json"):
                assert (await desk.client.get(path)).status_code == 200
        assert not desk.painters.asked
        desk.client.headers = httpx.Headers({"Authorization": f"Bearer {TOKEN}"})
        assert (await desk.ask(prompt="a secret prompt")).status_code == 200
        assert (await desk.client.get("/metrics")).status_code == 200
        assert TOKEN not in (await desk.client.get("/metrics")).text

    at_desk(use, rules=AccessRules(token_digest=digest_of(TOKEN)))
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    logged = " ".join(record.getMessage() for record in ours)
    assert TOKEN not in logged
    assert "secret prompt" not in logged


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("[::1]:8000", True),
        ("attacker.example", False),
        ("127.0.0.1.attacker.example", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_a_foreign_name_for_this_machine_is_not_answered(host: str, answered: bool) -> None:
    async def use(desk: Desk) -> None:
        for path in ("/", "/healthz", "/v1/models", "/metrics"):
            response = await desk.client.get(path, headers={"host": host})
            assert response.status_code == (200 if answered else 421), (path, response.text)

    at_desk(use)


def test_a_form_of_another_page_paints_nothing() -> None:
    async def use(desk: Desk) -> None:
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            None,
        ):
            headers = {} if kind is None else {"content-type": kind}
            response = await desk.client.post(
                "/v1/images/generations", content=b'{"prompt": "a red circle"}', headers=headers
            )
            assert_is_error(response, 415)
        preflight = await desk.client.options(
            "/v1/images/generations",
            headers={"origin": "https://attacker.example", "access-control-request-method": "POST"},
        )
        assert "access-control-allow-origin" not in preflight.headers
        assert not desk.painters.asked

    at_desk(use)


def test_the_page_runs_its_own_script_and_nothing_else() -> None:
    async def use(desk: Desk) -> None:
        response = await desk.client.get("/")
        policy: dict[str, Any] = dict(
            part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"].startswith("'sha256-")
        assert policy["frame-ancestors"] == "'none'"
        for foreign in ("http://", "https://", "//cdn", "innerHTML", "document.write", "eval("):
            assert foreign not in response.text

    at_desk(use)
