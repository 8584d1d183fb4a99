"""The endpoint against a local server with the faults that real ones have."""

from __future__ import annotations

import email.utils
import json
import logging
import threading
import time
from collections.abc import Iterator

import pytest

from actors.errors import UserError
from evaluation.judge.config import PRESETS, JudgeConfig
from evaluation.judge.endpoint import ChatEndpoint, EndpointError
from tests.evaluation.judge.chat_server import ChatServer, Fault, chat_server

SECRET = "sk-secret-0123456789"
REQUEST = {"model": "judge", "messages": [{"role": "user", "content": "which?"}]}


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server(lambda request: "the first") as started:
        yield started


@pytest.fixture
def endpoint(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatEndpoint]:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    judge = JudgeConfig("judge", server.url, "JUDGE_KEY")
    with ChatEndpoint(judge, attempts=4, deadline_s=5.0, first_pause_s=0.01) as made:
        yield made


def test_a_reply_comes_with_its_model_and_tokens(server: ChatServer, endpoint: ChatEndpoint) -> None:
    reply = endpoint.ask(REQUEST)
    assert (reply.text, reply.model) == ("the first", "judge-0001")
    assert (reply.input_tokens, reply.output_tokens) == (800, 20)
    assert server.requests == [REQUEST]
    assert server.authorizations == [f"Bearer {SECRET}"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(500, "oops"),
        Fault(503, ""),
        Fault(429, "slow down"),
        Fault(200, "<html>bad gateway</html>"),
        Fault(200, '{"choices": []}'),
        Fault(200, "[" * 100_000),
        Fault(200, "x" * (3 << 20)),
        Fault(200, '{"choices": [{"message": {"content": "1"}}], "usage": {"prompt_tokens": Infinity}}'),
        Fault(hang_up=True),
    ],
    ids=["500", "503", "429", "html", "empty", "nested", "huge", "endless", "hung up"],
)
def test_what_may_pass_is_tried_again(server: ChatServer, endpoint: ChatEndpoint, fault: Fault) -> None:
    server.faults += [fault, fault]
    assert endpoint.ask(REQUEST).text == "the first"
    assert len(server.requests) == 3


def test_half_a_character_in_an_answer_can_be_written(server: ChatServer, endpoint: ChatEndpoint) -> None:
    """A model that is cut off in the middle of an emoji; json reads an escaped half of it."""
    server.faults.append(Fault(200, r'{"choices": [{"message": {"content": "lighter \ud83d"}}]}'))
    assert endpoint.ask(REQUEST).text.encode() == b"lighter ?"


def test_a_server_that_never_recovers_is_given_up_with_its_own_words(
    server: ChatServer, endpoint: ChatEndpoint
) -> None:
    server.faults += [Fault(500, "the disk is full")] * 9
    with pytest.raises(EndpointError, match=r"500 Internal Server Error: the disk is full, 4 times"):
        endpoint.ask(REQUEST)
    assert len(server.requests) == 4


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_waited_for(server: ChatServer, endpoint: ChatEndpoint, as_date: bool) -> None:
    until = time.time() + 2
    value = email.utils.formatdate(until, usegmt=True) if as_date else "0.4"
    server.faults.append(Fault(429, "rate limit", {"Retry-After": value}))
    endpoint.ask(REQUEST)
    first, second = server.times
    assert time.time() >= int(until) if as_date else second - first >= 0.4  # a date has whole seconds


def test_nobody_waits_for_a_server_once_the_judgement_has_ended(
    server: ChatServer, endpoint: ChatEndpoint
) -> None:
    server.faults.append(Fault(429, "rate limit", {"Retry-After": "200"}))
    ending = threading.Timer(0.2, endpoint.stop)
    ending.start()
    with pytest.raises(EndpointError, match="stopped while it waited"):
        endpoint.ask(REQUEST)
    ending.join()


def test_a_server_that_asks_for_an_hour_is_out_of_quota(server: ChatServer, endpoint: ChatEndpoint) -> None:
    server.faults.append(Fault(429, "quota", {"Retry-After": "3600"}))
    with pytest.raises(EndpointError, match="it asks for 3600 s of patience"):
        endpoint.ask(REQUEST)
    assert len(server.requests) == 1


def test_an_answer_that_drips_is_cut_off_at_the_deadline(server: ChatServer) -> None:
    """Every byte comes in time, the whole never does."""
    server.faults += [Fault(200, "x" * 1_000, drip_s=0.02)] * 2
    judge = JudgeConfig("judge", server.url)
    with (
        ChatEndpoint(judge, attempts=2, deadline_s=0.3, first_pause_s=0.01) as endpoint,
        pytest.raises(EndpointError, match=r"no whole answer in 0\.3 s, 2 times"),
    ):
        endpoint.ask(REQUEST)


@pytest.mark.parametrize("status", [401, 403, 404, 302, 307])
def test_what_no_question_can_pass_is_said_at_once(
    server: ChatServer, endpoint: ChatEndpoint, status: int
) -> None:
    server.faults.append(Fault(status, "no", {"Location": "http://localhost:1/elsewhere"}))
    with pytest.raises(UserError, match=f"answers {status} .*check --base-url, --model and the key"):
        endpoint.ask(REQUEST)
    assert len(server.requests) == 1, "and nothing follows a redirect, which would take the key along"


def test_a_refused_question_does_not_end_the_others(server: ChatServer, endpoint: ChatEndpoint) -> None:
    server.faults.append(Fault(400, "content policy"))
    with pytest.raises(EndpointError, match="400 Bad Request: content policy"):
        endpoint.ask(REQUEST)
    assert endpoint.ask(REQUEST).text == "the first"


def test_the_key_is_nowhere_but_in_its_header(
    server: ChatServer, endpoint: ChatEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that repeats the key in errors and answers, with every log switched on."""
    said = []
    with caplog.at_level(logging.DEBUG):
        for status in (400, 401, 500):
            server.faults += [Fault(status, f"bad key: Bearer {SECRET}")] * 4
            with pytest.raises((EndpointError, UserError)) as caught:
                endpoint.ask(REQUEST)
            server.faults.clear()
            said += [str(caught.value), repr(caught.value), str(caught.value.__cause__)]
        server.say = lambda request: f"your key is {SECRET}"
        said.append(endpoint.ask(REQUEST).text)
    said += [caplog.text, repr(endpoint), repr(endpoint.judge), json.dumps(server.requests)]
    assert not [text for text in said if SECRET in text]
    assert "your key is [key]" in said


def test_a_missing_key_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        ChatEndpoint(PRESETS["gpt-4o"])
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    with pytest.raises(UserError, match=r"^OPENAI_API_KEY holds something that is no key$"):
        ChatEndpoint(PRESETS["gpt-4o"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "http://judges.example/v1", "key_variable": "KEY"}, "a key goes over https only"),
        ({"base_url": "judges.example"}, "give an address such as"),
        ({"base_url": "ftp://judges.example"}, "give an address such as"),
        ({"base_url": "https://me:secret@judges.example"}, "holds a user or password"),
        ({"base_url": "https://judges.example", "model": ""}, "--model is empty"),
        ({"base_url": "https://judges.example", "input_usd": -1.0}, "input_usd=-1.0"),
    ],
)
def test_addresses_that_cannot_be_used_or_trusted_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        JudgeConfig(**{"model": "judge", **options})  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_a_key_may_go_to_this_machine_without_encryption() -> None:
    for host in ("localhost", "127.0.0.1", "[::1]"):
        assert JudgeConfig("judge", f"http://{host}:8000/v1/", "KEY").url.endswith(
            ":8000/v1/chat/completions"
        )
