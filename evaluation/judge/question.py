"""What a judge is asked, what its answer means, and what asking costs.

Always true here: a question names no method, and every pair is asked in both orders. An answer that cannot
be read is None: it is never taken for a tie. TEMPLATE changes whenever the words do, and with it every key.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from evaluation.judge.config import JudgeConfig

Choice = Literal["first", "second", "tie"]

TEMPLATE = "1"
_SYSTEM = (
    "You compare two images that were generated from the same text prompt. Judge how well each shows what the"
    " prompt asks for (objects, counts, colours, attributes, relations), and then how free of flaws it looks."
    " The order of the images means nothing. Answer with one line of JSON and nothing else:"
    ' {"reason": "one short sentence", "winner": "1"} where winner is "1", "2", or "tie" if neither is'
    " better."
)
MAX_TOKENS = 300
_ANSWER_TOKENS = 50
_LONGEST_ANSWER = 10_000
"""Characters that are read of an answer."""
_CHOICES: dict[str, Choice] = {"1": "first", "2": "second", "tie": "tie"}
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True)
class Question:
    """One order of one pair: which image is better for the prompt?

    first and second are the pictures' files (PNG or JPEG), digests of them, and sizes as (width, height).
    """

    prompt: str
    first: bytes
    second: bytes
    first_size: tuple[int, int]
    second_size: tuple[int, int]

    def key(self, judge: JudgeConfig) -> str:
        """What an answer is cached under: changes with the judge, the words, the prompt and either image."""
        parts = [
            TEMPLATE,
            judge.model,
            judge.base_url,
            judge.detail,
            json.dumps(dict(judge.extra)),
            self.prompt,
        ]
        parts += [hashlib.sha256(image).hexdigest() for image in (self.first, self.second)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def request(self, judge: JudgeConfig) -> dict[str, Any]:
        """The body of a chat completion request."""
        content: list[dict[str, Any]] = [{"type": "text", "text": f"Prompt: {json.dumps(self.prompt)}"}]
        for number, image in ((1, self.first), (2, self.second)):
            content.append({"type": "text", "text": f"Image {number}:"})
            url = {"url": _data_url(image), "detail": judge.detail}
            content.append({"type": "image_url", "image_url": url})
        return {
            "model": judge.model,
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "messages": [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": content}],
            **judge.extra,
        }


@dataclass(frozen=True)
class Answer:
    """What a judge chose, and why."""

    choice: Choice
    reason: str


@dataclass(frozen=True)
class Cost:
    """An estimate of what questions will cost. usd is None where a price is unknown."""

    questions: int
    input_tokens: int
    output_tokens: int
    usd: float | None

    def __str__(self) -> str:
        money = "price unknown" if self.usd is None else f"about ${self.usd:.2f}"
        return (
            f"{self.questions:,} questions, about {self.input_tokens:,} input and"
            f" {self.output_tokens:,} output tokens, {money}"
        )


def read_answer(text: str) -> Answer | None:
    """The first JSON object with a winner in a judge's words; None if there is no such thing."""
    text = text[:_LONGEST_ANSWER]
    for found in re.finditer(r"\{", text):
        try:
            values, _ = json.JSONDecoder().raw_decode(text, found.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and "winner" in values:
            choice = _CHOICES.get(str(values["winner"]).strip().lower())
            return None if choice is None else Answer(choice, str(values.get("reason", ""))[:500])
    return None


def image_tokens(judge: JudgeConfig, size: tuple[int, int]) -> int:
    """How many input tokens an image of (width, height) counts as, by the provider's published rule."""
    width, height = size
    if judge.image_tokens == "gemini":
        if max(size) <= 384:
            return 258
        unit = min(max(min(size) / 1.5, 256), 768)
        return 258 * math.ceil(width / unit) * math.ceil(height / unit)
    if judge.detail == "low":
        return 85
    fit = min(1.0, 2048 / max(size))
    fit *= min(1.0, 768 / (fit * min(size)))
    return 85 + 170 * math.ceil(fit * width / 512) * math.ceil(fit * height / 512)


def question_tokens(question: Question, judge: JudgeConfig) -> int:
    """About how many input tokens a question has."""
    text = len(_SYSTEM) + len(question.prompt) + 40
    images = image_tokens(judge, question.first_size) + image_tokens(judge, question.second_size)
    return images + math.ceil(text / _CHARACTERS_A_TOKEN)


def cost_of(judge: JudgeConfig, input_tokens: int, questions: int) -> Cost:
    """What so many questions with so many input tokens in all will cost."""
    output_tokens = questions * _ANSWER_TOKENS
    if judge.input_usd is None or judge.output_usd is None:
        return Cost(questions, input_tokens, output_tokens, None)
    usd = (input_tokens * judge.input_usd + output_tokens * judge.output_usd) / 1e6
    return Cost(questions, input_tokens, output_tokens, usd)


def _data_url(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
