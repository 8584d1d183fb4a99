"""Prompts: from the embedded world, from a text file with one a line, or from a JSON-lines file.

Always true here: a prompt is a non-empty line of at most 300 words; a source that has none, or that is
not text, is the user's mistake and never an empty list.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from actors.errors import UserError
from shapes.captions import SPLITS, TIERS, distinct_captions, scene_count

MAX_WORDS = 300


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and how hard its source says it is."""

    text: str
    tier: str | None = None


class PromptOptions(NamedTuple):
    """What the user calls the three choices of `load_prompts`, for its messages."""

    source: str = "prompts.source"
    split: str = "prompts.split"
    limit: str = "prompts.limit"


TRAINING_OPTIONS = PromptOptions()
EVALUATION_OPTIONS = PromptOptions("evaluation.prompts", "evaluation.split", "evaluation.prompts_per_tier")


def load_prompts(
    path_or_source: str,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    options: PromptOptions = TRAINING_OPTIONS,
) -> list[Prompt]:
    """Prompts of `shapes` (one split of the embedded world) or of a .txt or .jsonl file.

    A file's order is kept, and `split` and `seed` do not apply to it. Captions of `shapes` take turns
    through the tiers; without a limit there are as many of each tier as the smallest tier has. A JSON
    line is an object with `prompt` and, if known, `tier`. Raises UserError, in the words of `options`.
    """
    if limit is not None and limit < 1:
        raise UserError(f"{options.limit} is {limit}; accepted: a whole number from 1")
    if path_or_source == "shapes":
        return _from_shapes(split, limit, seed, options)
    return _from_file(Path(path_or_source), options.source)[:limit]


def _from_shapes(split: str, limit: int | None, seed: int, options: PromptOptions) -> list[Prompt]:
    if split not in SPLITS:
        raise UserError(f"{options.split} is {split!r}; accepted: {', '.join(SPLITS)}")
    per_tier = scene_count(TIERS[0], split) if limit is None else -(-limit // len(TIERS))
    try:
        captions = distinct_captions(seed, per_tier, split)
    except ValueError as error:
        raise UserError(f"{options.limit} is {limit}; accepted: fewer, as {error}") from error
    prompts = [Prompt(caption, str(tier)) for caption, tier in captions]
    return [prompts[start] for turn in range(per_tier) for start in range(turn, len(prompts), per_tier)][
        :limit
    ]


def _from_file(path: Path, name: str) -> list[Prompt]:
    option = f"{name} is {str(path)!r}"
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(f"{option}; accepted: shapes, or a .txt or .jsonl file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{option}, which is not text; accepted: UTF-8, one prompt a line") from error
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise UserError(f"{option} ({reason}); accepted: shapes, or a .txt or .jsonl file") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{option}, line {number}"
        if "\0" in line:
            raise UserError(f"{option}, which is not text; accepted: UTF-8, one prompt a line")
        prompt = _parse_json(line, where) if path.suffix == ".jsonl" else Prompt(line.strip())
        if (words := len(prompt.text.split())) > MAX_WORDS:
            raise UserError(f"{where}: {words} words; accepted: at most {MAX_WORDS}")
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{option}, which holds no prompt; accepted: one prompt a line")
    return prompts


def _parse_json(line: str, where: str) -> Prompt:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); accepted: objects with `prompt`") from error
    text = entry.get("prompt") if isinstance(entry, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: no `prompt`; accepted: objects with a text `prompt`")
    tier = entry.get("tier")
    return Prompt(text.strip(), None if tier is None else str(tier))
