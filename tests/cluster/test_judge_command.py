"""`addiffusion judge`: what it asks, prints, stores and refuses, with a judge on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import Say
from tests.evaluation.judge.chat_server import ChatServer, Fault, brighter, chat_server
from tests.evaluation.judge.test_judging import rows
from tests.evaluation.metrics.stored import write_table

SECRET = "sk-secret-0123456789"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as started:
        yield started


@pytest.fixture
def images(folder: Path) -> str:
    """Method light wins 10 of 12 pairs by being lighter, and ties 2."""
    light = {(prompt, seed): 120 for prompt in range(4) for seed in range(3)}
    light |= {(0, 0): 100, (1, 0): 100}
    write_table(folder / "images.parquet", {"light": rows(light), "plain": rows({})})
    return "images.parquet"


def test_judging_prints_the_estimate_and_the_tally_and_goes_on_for_nothing(
    say: Say, server: ChatServer, images: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    command = ("judge", images, "--base-url", server.url, "--model", "local", "--key-variable", "MY_KEY")
    code, out, err = say(*command)
    assert (code, err.count("\n"), server.requests) == (2, 1, [])
    assert err.startswith("error: --max-usd=10: nobody knows what local charges; give --input-usd and")
    unlimited = (*command, "--max-usd", "inf")
    code, out, err = say(*unlimited)
    assert (code, "error" in err) == (0, False)
    estimate, header, row, *rest = out.splitlines()
    assert estimate.startswith("local: 20 questions, about ")
    assert estimate.endswith("price unknown")
    assert header.split()[:4] == ["judge", "first", "second", "wins"]
    assert row.split()[:8] == ["local", "light", "plain", "10", "2", "0", "0", "0.917"]
    assert rest == ["summary: judge/judge.json"]
    assert set(server.authorizations) == {f"Bearer {SECRET}"}

    said = json.loads((folder / "judge" / "judge.json").read_text())["judges"]["local"]
    assert said["pairs"][0]["win_rate"]["estimate"] == pytest.approx(11 / 12)
    assert said["pairs"][0]["decided_ci95"][0] == pytest.approx(0.7225, abs=1e-4)  # Wilson of 10 in 10
    strength = said["strengths"]["light"]["estimate"] - said["strengths"]["plain"]["estimate"]
    assert strength == pytest.approx(400 * 1.0413927, abs=0.1)  # Elo of odds 11 to 1
    written = [path.read_text() for path in (folder / "judge").iterdir()]
    assert not [text for text in (*written, out, err) if SECRET in text]

    server.requests.clear()
    code, again, _ = say(*unlimited[:-2])  # nothing is left to pay for
    assert (code, server.requests) == (0, [])
    assert again.startswith("local: 0 questions")
    assert again.splitlines()[1:] == out.splitlines()[1:]


def test_questions_without_an_answer_are_told_and_make_the_exit_code(
    say: Say, server: ChatServer, images: str, folder: Path
) -> None:
    server.faults += [Fault(400, "content policy")] + [None] * 4
    code, out, err = say(
        *("judge", images, "--base-url", server.url, "--model", "local", "--pairs", "6", "--at-once", "1"),
        *("--input-usd", "0", "--output-usd", "0"),
    )
    assert code == 1
    assert "1 questions without an answer, the last one: 400 Bad Request: content policy" in err
    assert (
        json.loads((folder / "judge" / "judge.json").read_text())["judges"]["local"]["pairs"][0]["unjudged"]
        == 1
    )
    assert server.say is brighter
    code, out, err = say(
        *("judge", images, "--base-url", server.url, "--model", "local", "--pairs", "6", "--at-once", "1"),
        *("--input-usd", "0", "--output-usd", "0"),
    )
    assert (code, "error" in err) == (0, False)
    assert out.startswith("local: 1 questions")


def test_an_estimate_needs_no_key_and_stops_what_is_too_dear(
    say: Say, images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", SECRET)
    code, out, _ = say("judge", images, "--judge", "gpt-4o", "--judge", "gemini", "--dry-run")
    assert code == 0
    gpt, gemini = out.splitlines()
    assert gpt.startswith("gpt-4o-2024-08-06: 20 questions")
    assert gpt.endswith("about $0.04")
    assert gemini.startswith("gemini-2.5-flash: 20 questions")
    code, _, err = say("judge", images, "--judge", "gemini", "--max-usd", "0.001")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: --max-usd=0.001: it would be about $0.01")
    named = ("judge", images, "--base-url", "http://localhost:1/v1", "--model", "m")
    code, _, err = say(*named, "--input-usd", "100000", "--output-usd", "0")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: --max-usd=10: it would be about $")


def test_only_the_named_methods_are_judged(say: Say, folder: Path) -> None:
    plain = rows({})
    write_table(folder / "three.parquet", {"a": plain, "b": rows({(0, 0): 90}), "c": rows({(0, 0): 80})})
    asked = ("judge", "three.parquet", "--judge", "gpt-4o", "--dry-run")
    assert say(*asked)[1].startswith("gpt-4o-2024-08-06: 6 questions"), "three pairs of methods differ"
    code, out, _ = say(*asked, "--method", "a", "--method", "c")
    assert (code, out.split(",")[0]) == (0, "gpt-4o-2024-08-06: 2 questions")
    code, _, err = say(*asked, "--method", "d")
    assert (code, err) == (2, "error: --method=d: give one of a, b, c\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--judge: give one of gpt-4o, gemini, or --base-url and --model"),
        (("--judge", "gpt4o"), "--judge=gpt4o: give one of gpt-4o, gemini; did you mean 'gpt-4o'?"),
        (("--judge", "gpt-4o"), "OPENAI_API_KEY is not set"),
        (("--base-url", "http://localhost:1/v1"), "--model: give the name of a model at --base-url"),
        (("--base-url", "http://localhost:1", "--judge", "gemini", "--model", "m"), "--base-url and --judge"),
        (("--judge", "gpt-4o", "--judge", "gemini", "--model", "m"), "--model: give it with one --judge"),
        (("--base-url", "http://localhost:1", "--model", "m", "--pairs", "0"), "--pairs=0: give a whole"),
        (("--base-url", "http://localhost:1", "--model", "m", "--max-usd", "nan"), "--max-usd=nan: give US"),
        (("--judge", "gemini", "--input-usd", "-1"), "--input-usd=-1: give US dollars"),
        (("--judge", "gpt-4o", "--judge", "gemini", "--input-usd", "1"), "--input-usd, --output-usd: give"),
        (("--base-url", "http://a.example", "--model", "m", "--key-variable", "K"), "--base-url="),
    ],
)
def test_mistakes_are_one_line(
    say: Say, images: str, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, out, err = say("judge", images, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {message}")


def test_images_that_are_not_there_are_one_line(say: Say) -> None:
    code, _, err = say("judge", "nowhere", "--base-url", "http://localhost:1", "--model", "m")
    assert (code, err) == (
        2,
        "error: nowhere: no such file or folder; give Parquet tables or a folder of images\n",
    )
