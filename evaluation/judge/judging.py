"""Judges pairs of stored images: estimate, ask, keep, go on after an interruption.

Always true here: pairs are drawn by rule from the prompts and seeds that all methods have, so that every pair
of methods is judged on the same ones. An answered question is never asked again. Questions go out several at
a time; after BROKEN failures in a row the endpoint counts as broken and the rest waits for another day.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from actors.errors import UserError
from evaluation.judge.answers import AnswerFile, StoredAnswer
from evaluation.judge.config import JudgeConfig
from evaluation.judge.endpoint import ChatEndpoint, EndpointError
from evaluation.judge.question import Choice, Cost, Question, cost_of, question_tokens, read_answer
from evaluation.judge.verdicts import Verdict
from evaluation.metrics.images import ImageRecord, ImageSet, decode, read_encoded

REREADS = 2
"""How often a question is asked again whose answer cannot be read."""
BROKEN = 10
Progress = Callable[[int, int, int], None]
"""Called with the number of questions answered, failed, and asked in all."""


@dataclass(frozen=True)
class Judged:
    """Verdicts on all pairs, the number of questions without an answer, and why the last of these failed."""

    verdicts: list[Verdict]
    failed: int
    last_error: str | None


@dataclass(frozen=True)
class Pair:
    """Two methods' images for one prompt and seed."""

    first: str
    second: str
    first_image: ImageRecord
    second_image: ImageRecord

    def questions(self) -> tuple[Question, Question]:
        """Both orders: first's image first, and second's."""
        one, other = _picture(self.first_image), _picture(self.second_image)
        prompt = self.first_image.prompt
        return (
            Question(prompt, one[0], other[0], one[1], other[1]),
            Question(prompt, other[0], one[0], other[1], one[1]),
        )


def draw_pairs(sets: Sequence[ImageSet], most: int | None = None, seed: int = 0) -> list[Pair]:
    """All pairs of methods on the images that all of them have, or on `most` of these, drawn by seed.

    Raises UserError for fewer than two methods, two of one name, or no prompt and seed in common.
    """
    names = [each.name for each in sets]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{twice!r}: two sets of images of that name; give each method once")
    if len(names) < 2:
        raise UserError("one method; give images of at least two")
    found = [{(record.prompt, record.seed): record for record in each.records} for each in sets]
    common = [key for key in found[0] if key[0] and all(key in others for others in found)]
    if not common:
        raise UserError(
            f"{', '.join(names)}: no prompt and seed in common; pairs are of the same prompt and noise"
        )
    if most is not None and most < len(common):
        drawn = np.random.default_rng(seed).choice(len(common), most, replace=False)
        common = [common[index] for index in sorted(drawn)]
    return [
        Pair(a.name, b.name, images_a[key], images_b[key])
        for (a, images_a), (b, images_b) in combinations(zip(sets, found, strict=True), 2)
        for key in common
    ]


def estimate_cost(pairs: Sequence[Pair], judge: JudgeConfig, answers: AnswerFile) -> Cost:
    """What the questions without an answer will cost."""
    tokens = [
        question_tokens(question, judge)
        for pair in pairs
        for question in pair.questions()
        if question.first != question.second and answers.get(question.key(judge)) is None
    ]
    return cost_of(judge, sum(tokens), len(tokens))


def judge_pairs(
    pairs: Sequence[Pair],
    endpoint: ChatEndpoint,
    answers: AnswerFile,
    *,
    at_once: int = 4,
    progress: Progress | None = None,
) -> Judged:
    """A verdict on each pair, in order. Raises UserError where the endpoint cannot be used at all.

    at_once: questions under way at the same time.
    """
    asking = _Asking(endpoint, answers)
    with ThreadPoolExecutor(at_once) as executor:
        futures = [[executor.submit(asking.choice, pair, order) for order in range(2)] for pair in pairs]
        try:
            waiting = [future for both in futures for future in both]
            for done, future in enumerate(as_completed(waiting), 1):
                future.result()
                if progress is not None:
                    progress(done - asking.failed, asking.failed, len(waiting))
        except BaseException:
            asking.stopped = True
            endpoint.stop()
            executor.shutdown(cancel_futures=True)
            raise
    verdicts = [
        Verdict(
            pair.first,
            pair.second,
            pair.first_image.prompt,
            pair.first_image.seed,
            forward.result(),
            backward.result(),
        )
        for pair, (forward, backward) in zip(pairs, futures, strict=True)
    ]
    return Judged(verdicts, asking.failed, asking.last_error)


class _Asking:
    """What the threads share: the endpoint, the answers, and how many failures came in a row."""

    def __init__(self, endpoint: ChatEndpoint, answers: AnswerFile) -> None:
        self.failed = 0
        self.last_error: str | None = None
        self.stopped = False
        self._in_a_row = 0
        self._lock = threading.Lock()
        self._endpoint = endpoint
        self._answers = answers

    def choice(self, pair: Pair, order: int) -> Choice | None:
        """The answer to one order of a pair, None if there is none; two equal images are a tie."""
        question = pair.questions()[order]
        if question.first == question.second:
            return "tie"
        key = question.key(self._endpoint.judge)
        if (known := self._answers.get(key)) is not None:
            return known.choice
        if self.stopped:
            self._fail(self.last_error or "stopped")
            return None
        try:
            answer = self._ask(question, key)
        except EndpointError as error:
            self._fail(str(error))
            return None
        self._answers.add(answer)
        with self._lock:
            self._in_a_row = 0
        return answer.choice

    def _ask(self, question: Question, key: str) -> StoredAnswer:
        request = question.request(self._endpoint.judge)
        for _ in range(1 + REREADS):
            reply = self._endpoint.ask(request)
            if (answer := read_answer(reply.text)) is not None:
                return StoredAnswer(
                    key, answer.choice, answer.reason, reply.model, reply.input_tokens, reply.output_tokens
                )
        raise EndpointError(f"{1 + REREADS} answers without a winner, the last one: {reply.text[:100]!r}")

    def _fail(self, reason: str) -> None:
        with self._lock:
            self.failed += 1
            self._in_a_row += 1
            self.last_error = reason
            self.stopped = self.stopped or self._in_a_row >= BROKEN


def _picture(record: ImageRecord) -> tuple[bytes, tuple[int, int]]:
    """The picture's file, and its width and height."""
    encoded = read_encoded(record)
    height, width, _ = decode(encoded, record).shape
    return encoded, (width, height)
