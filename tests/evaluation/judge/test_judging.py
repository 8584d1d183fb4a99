"""Judging stored images by a local server: verdicts, resumption, faults, and what it would cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.errors import UserError
from evaluation.judge.agreement import cohens_kappa
from evaluation.judge.answers import AnswerFile
from evaluation.judge.config import PRESETS, JudgeConfig
from evaluation.judge.endpoint import ChatEndpoint
from evaluation.judge.judging import Judged, Pair, draw_pairs, estimate_cost, judge_pairs
from evaluation.judge.question import Question, cost_of, image_tokens, question_tokens, read_answer
from evaluation.judge.summary import summarise
from evaluation.judge.verdicts import Verdict, shared_outcomes, tally
from evaluation.metrics.contracts import UnmeasurableError
from evaluation.metrics.images import ImageSet, encode, read_sets
from tests.evaluation.judge.chat_server import ChatServer, Fault, brighter, brightness, chat_server
from tests.evaluation.metrics.stored import write_table

PROMPTS, SEEDS = 4, 3


def flat(level: int, mark: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A grey picture; the mark makes another picture of it that is as bright."""
    image = np.full((8, 8, 3), level, np.uint8)
    image[mark // 8, mark % 8] += np.array([1, 0, 255], np.uint8)
    return image


def rows(levels: dict[tuple[int, int], int]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"prompt {prompt}",
            "seed": seed,
            "image": flat(levels.get((prompt, seed), 100), SEEDS * prompt + seed),
        }
        for prompt in range(PROMPTS)
        for seed in range(SEEDS)
    ]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[ImageSet]:
    """Method light is lighter in 8 of 12 images, darker in 2, and the same in 2."""
    light = {(p, s): 120 for p in range(PROMPTS) for s in range(SEEDS)}
    light |= {(0, 0): 50, (1, 0): 50, (2, 0): 100, (3, 0): 100}
    folder = tmp_path_factory.mktemp("judged")
    return read_sets(write_table(folder / "images.parquet", {"light": rows(light), "plain": rows({})}))


@pytest.fixture(scope="module")
def pairs(sets: list[ImageSet]) -> list[Pair]:
    return draw_pairs(sets)


def test_two_methods_of_one_name_are_refused_before_anything_is_asked(sets: list[ImageSet]) -> None:
    with pytest.raises(UserError, match="'light': two sets of images of that name"):
        draw_pairs([*sets, sets[0]])


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as started:
        yield started


def judged(server: ChatServer, pairs: list[Pair], folder: Path, attempts: int = 3, **options: Any) -> Judged:
    judge = JudgeConfig("judge", server.url)
    with (
        ChatEndpoint(judge, attempts=attempts, deadline_s=10.0, first_pause_s=0.01) as endpoint,
        AnswerFile(folder / "answers.jsonl") as answers,
    ):
        return judge_pairs(pairs, endpoint, answers, **options)


def test_the_better_method_wins_its_images_and_equal_ones_are_no_question(
    server: ChatServer, pairs: list[Pair], tmp_path: Path
) -> None:
    progress: list[tuple[int, int, int]] = []
    found = judged(server, pairs, tmp_path, progress=lambda *counts: progress.append(counts))
    result = tally(found.verdicts)
    assert (result.wins, result.ties, result.losses, result.unjudged) == (8, 2, 2, 0)
    assert result.decided == pytest.approx(0.8)
    assert result.swayed == 0.0
    assert result.win_rate is not None
    assert result.win_rate.value == pytest.approx(9 / 12)
    assert len(server.requests) == 2 * 10, "two pairs of equal pictures need no judge"
    assert progress[-1] == (24, 0, 24)
    assert (found.failed, found.last_error) == (0, None)


def test_both_orders_are_asked_and_no_method_is_named(
    server: ChatServer, pairs: list[Pair], tmp_path: Path
) -> None:
    judged(server, pairs[:1], tmp_path)
    orders = [(brightness(request, 0), brightness(request, 1)) for request in server.requests]
    assert sorted(orders) == [(50.0, 100.0), (100.0, 50.0)]
    said = json.dumps(server.requests)
    assert "prompt 0" in said
    assert "light" not in said
    assert "plain" not in said


def test_a_judge_who_always_takes_the_first_image_decides_nothing(pairs: list[Pair], tmp_path: Path) -> None:
    with chat_server(lambda request: '{"winner": 1}') as server:
        result = tally(judged(server, pairs, tmp_path).verdicts)
    assert (result.wins, result.ties, result.losses) == (0, 12, 0)
    assert result.swayed == pytest.approx(10 / 12)
    assert result.win_rate is not None
    assert result.win_rate.value == 0.5
    assert (result.decided, result.decided_ci95) == (None, (0.0, 1.0))


def test_an_interrupted_judgement_goes_on_where_it_stopped(
    server: ChatServer, pairs: list[Pair], tmp_path: Path
) -> None:
    """The key expires in the middle and the last line is torn; later only the rest is asked."""

    def expire(request: dict[str, Any]) -> str:
        if len(server.requests) == 7:
            server.faults += [Fault(401, "key expired")] * 1_000
        return brighter(request)

    server.say = expire
    with pytest.raises(UserError, match="answers 401"):
        judged(server, pairs, tmp_path, at_once=1)
    path = tmp_path / "answers.jsonl"
    assert len(path.read_text().splitlines()) == 7
    path.write_text(path.read_text() + '{"key": "torn')

    server.faults.clear()
    server.requests.clear()
    server.say = brighter
    found = judged(server, pairs, tmp_path).verdicts
    assert len(server.requests) == 20 - 7
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines) == 20
    assert found == judged(server, pairs, tmp_path / "whole").verdicts


def test_a_second_run_asks_nothing(server: ChatServer, pairs: list[Pair], tmp_path: Path) -> None:
    first = judged(server, pairs, tmp_path).verdicts
    server.requests.clear()
    assert judged(server, pairs, tmp_path).verdicts == first
    assert server.requests == []


def test_an_answer_without_a_winner_is_asked_for_again_and_then_unjudged(
    server: ChatServer, pairs: list[Pair], tmp_path: Path
) -> None:
    words = iter(["Both are nice.", '{"winner": "3"}', '```json\n{"reason": "x", "winner": "1"}\n```'])
    server.say = lambda request: next(words, "I cannot tell.")
    found = judged(server, pairs[:1], tmp_path, at_once=1)
    assert (found.verdicts[0].forward, found.verdicts[0].backward) == ("first", None)
    assert found.verdicts[0].outcome is None
    assert found.failed == 1
    assert "3 answers without a winner, the last one: 'I cannot tell.'" in str(found.last_error)
    assert tally(found.verdicts).unjudged == 1
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1, "a failure is not stored"


def test_a_broken_endpoint_is_not_asked_for_ever(
    server: ChatServer, pairs: list[Pair], tmp_path: Path
) -> None:
    server.faults += [Fault(400, "no")] * 1_000
    found = judged(server, pairs * 3, tmp_path, at_once=1)
    assert len(server.requests) == 10
    assert found.failed == 60
    assert all(each.outcome is None or each.forward == "tie" for each in found.verdicts)


def test_faults_in_between_lose_no_answer(server: ChatServer, pairs: list[Pair], tmp_path: Path) -> None:
    """Every third request goes wrong in another way; all pairs are judged as without."""
    expected = [each.outcome for each in judged(server, pairs, tmp_path / "quiet").verdicts]
    faults = [
        Fault(500),
        Fault(429, "", {"Retry-After": "0.01"}),
        Fault(hang_up=True),
        Fault(200, "{}"),
        Fault(503),
    ]
    server.faults += [each for fault in faults * 2 for each in (fault, None, None)]
    found = judged(server, pairs, tmp_path / "loud", attempts=11, at_once=3)  # more than there are faults
    assert [each.outcome for each in found.verdicts] == expected
    assert found.failed == 0


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ('{"winner": "2", "reason": "clear"}', "second"),
        ('Sure! {"reason": "a {brace}", "winner": "Tie"} Anything else?', "tie"),
        ('{"scores": {"a": 1}} {"winner": 1}', "first"),
        ("1", None),
        ('{"winner": "the first"}', None),
        ('{"winner": null}', None),
        ("{" * 3_000, None),
        ("", None),
    ],
)
def test_only_a_clear_answer_is_one(text: str, choice: str | None) -> None:
    answer = read_answer(text)
    assert (answer.choice if answer else None) == choice


def question(**changed: Any) -> Question:
    values = {"prompt": "a", "first": encode(flat(1)), "second": encode(flat(2))}
    return Question(**{**values, "first_size": (8, 8), "second_size": (8, 8), **changed})


def test_an_answer_is_kept_for_this_judge_these_words_and_these_pictures_only() -> None:
    judge = JudgeConfig("judge", "http://localhost/v1")
    key = question().key(judge)
    assert key == question().key(judge)
    others = [
        question(prompt="b").key(judge),
        question(first=encode(flat(3))).key(judge),
        question(first=encode(flat(2)), second=encode(flat(1))).key(judge),
        question().key(JudgeConfig("other", "http://localhost/v1")),
        question().key(JudgeConfig("judge", "http://localhost/v2")),
        question().key(JudgeConfig("judge", "http://localhost/v1", detail="low")),
    ]
    assert len({key, *others}) == 7


@pytest.mark.parametrize(
    ("preset", "size", "tokens"),
    [
        ("gpt-4o", (1024, 1024), 765),
        ("gpt-4o", (2048, 4096), 1105),
        ("gpt-4o", (512, 512), 255),
        ("gemini", (384, 384), 258),
        ("gemini", (960, 540), 6 * 258),
    ],
)
def test_images_count_as_the_providers_own_examples_say(
    preset: str, size: tuple[int, int], tokens: int
) -> None:
    assert image_tokens(PRESETS[preset], size) == tokens


def test_an_estimate_counts_what_is_not_answered_yet(
    server: ChatServer, pairs: list[Pair], tmp_path: Path
) -> None:
    judge = JudgeConfig("judge", server.url, input_usd=2.0, output_usd=10.0)
    with AnswerFile(tmp_path / "answers.jsonl") as answers:
        cost = estimate_cost(pairs, judge, answers)
    each = question_tokens(pairs[0].questions()[0], judge)
    assert (cost.questions, cost.input_tokens, cost.output_tokens) == (20, 20 * each, 1_000)
    assert cost.usd == pytest.approx(20 * each * 2e-6 + 1_000 * 1e-5)
    assert str(cost).endswith(f"about ${cost.usd:.2f}")
    judged(server, pairs[:3], tmp_path)
    with AnswerFile(tmp_path / "answers.jsonl") as answers:
        assert estimate_cost(pairs, JudgeConfig("judge", server.url), answers).questions == 14
    unknown = cost_of(JudgeConfig("judge", server.url), 10, 1)
    assert (unknown.usd, str(unknown).endswith("price unknown")) == (None, True)


def test_pairs_are_of_what_all_methods_have(sets: list[ImageSet], tmp_path: Path) -> None:
    third = rows({})[3:]
    table = write_table(tmp_path / "third.parquet", {"third": third})
    found = draw_pairs([*sets, *read_sets(table)])
    assert len(found) == 3 * 9
    assert {(pair.first, pair.second) for pair in found} == {
        ("light", "plain"),
        ("light", "third"),
        ("plain", "third"),
    }
    some, again = draw_pairs(sets, most=5, seed=1), draw_pairs(sets, most=5, seed=1)
    assert some == again
    assert len(some) == 5
    assert draw_pairs(sets, most=5, seed=2) != some
    with pytest.raises(UserError, match="one method"):
        draw_pairs(sets[:1])
    other = [{**row, "seed": 1_000 + row["seed"]} for row in rows({})]
    apart = read_sets(write_table(tmp_path / "apart.parquet", {"apart": other}))
    with pytest.raises(UserError, match="light, apart: no prompt and seed in common"):
        draw_pairs([sets[0], *apart])


def test_a_file_of_answers_has_one_writer_and_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path), pytest.raises(UserError, match="another process is judging into it"):
        AnswerFile(path)
    path.write_text('{"key": "k", "choice": "third"}\n')
    with pytest.raises(UserError, match=r"answers.jsonl, line 1: not an answer"):
        AnswerFile(path)


def verdict(seed: int, outcome: str) -> Verdict:
    orders = {"first": ("first", "second"), "second": ("second", "first"), "tie": ("tie", "tie")}
    forward, backward = orders[outcome]
    return Verdict("a", "b", f"prompt {seed}", seed, forward, backward)  # type: ignore[arg-type]


def test_a_win_needs_both_orders() -> None:
    outcomes = {
        (forward, backward): Verdict("a", "b", "p", 0, forward, backward).outcome  # type: ignore[arg-type]
        for forward in ("first", "second", "tie", None)
        for backward in ("first", "second", "tie", None)
    }
    assert outcomes.pop(("first", "second")) == "first"
    assert outcomes.pop(("second", "first")) == "second"
    for orders, outcome in outcomes.items():
        assert outcome == (None if None in orders else "tie")


def test_a_summary_has_every_number_or_the_reason_why_not() -> None:
    one = [verdict(seed, "first" if seed % 3 else "second") for seed in range(30)]
    other = [verdict(seed, "first" if seed % 2 else "tie") for seed in range(20)]
    found = summarise({"one": Judged(one, 0, None), "other": Judged(other, 4, "broken")}, resamples=500)
    assert found["judges"]["one"]["pairs"][0]["wins"] == 20
    gap = [found["judges"]["one"]["strengths"][name]["estimate"] for name in ("a", "b")]
    assert gap[0] - gap[1] == pytest.approx(400 * np.log10(2))
    assert found["judges"]["other"]["failed_questions"] == 4
    expected = cohens_kappa(*[[each.outcome or "" for each in judge[:20]] for judge in (one, other)])
    assert found["kappa"]["one and other"]["estimate"] == pytest.approx(expected)
    alone = summarise({"one": Judged([verdict(1, "first")], 0, None), "two": Judged(one[:1], 0, None)})
    assert "would be infinite" in alone["judges"]["one"]["strengths"]["missing"]
    assert alone["judges"]["one"]["pairs"][0]["win_rate"] is None
    assert alone["kappa"] == {"one and two": {"missing": "no pair that both judges judged"}}


def test_two_judges_are_compared_where_both_have_judged() -> None:
    one = [verdict(seed, outcome) for seed, outcome in enumerate(["first", "second", "tie", "first"])]
    other = [verdict(seed, outcome) for seed, outcome in [(1, "second"), (2, "first"), (9, "tie")]]
    assert shared_outcomes(one, other) == (["second", "tie"], ["second", "first"], ["prompt 1", "prompt 2"])
    with pytest.raises(UnmeasurableError, match="no pair that both"):
        shared_outcomes(one, [])
