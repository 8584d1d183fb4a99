"""Prompts: from the embedded world, from a file, or from a dataset of the hub.

Always true here: prompts are distinct, in an order that the source alone fixes (of `shapes`: the seed too); a
source that has none, or that is not text, is the user's mistake and never an empty list.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from actors.errors import UserError
from actors.prompt_files import read_file
from actors.prompt_hub import PREFIX, read_hub
from actors.prompt_records import MAX_WORDS, Columns, Prompt
from shapes.captions import SPLITS, TIERS, distinct_captions, scene_count

__all__ = [
    "EVALUATION_OPTIONS",
    "MAX_WORDS",
    "TRAINING_OPTIONS",
    "Columns",
    "Prompt",
    "PromptOptions",
    "load_prompts",
]


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
    columns: Columns = Columns(),  # noqa: B008  (immutable)
    *,
    exhaust: bool = False,
) -> list[Prompt]:
    """Prompts of `shapes` (one split of the embedded world), of a file, or of a dataset ("hf:OWNER/NAME").

    A file's or dataset's order is kept; `seed` does not apply to it, nor `split` to a file. Of prompts that
    are the same the first one stays. With a limit no more is read than it takes. Captions of `shapes` take
    turns through the tiers; without a limit there are as many of each tier as the smallest tier has. exhaust:
    a tier of `shapes` that has fewer than its share of the limit gives all it has, which is else refused.
    columns: of a table, where they are not called `prompt` and `tier`. Raises UserError, in the words of
    `options`.
    """
    if limit is not None and limit < 1:
        raise UserError(f"{options.limit} is {limit}; accepted: a whole number from 1")
    if path_or_source == "shapes":
        if columns != Columns():
            raise UserError(f"{options.source} is 'shapes', which has no columns to name; accepted: a table")
        return _from_shapes(split, limit, seed, options, exhaust)
    option = f"{options.source} is {path_or_source!r}"
    if path_or_source.startswith(PREFIX):
        found = read_hub(path_or_source, split, option, columns)
    else:
        found = read_file(Path(path_or_source), option, columns)
    with closing(found):  # and with it the file, where the limit ends it early
        prompts = _distinct(found, limit)
    if not prompts:
        raise UserError(f"{option}, which holds no prompt; accepted: one prompt a line or row")
    return prompts


def _distinct(prompts: Generator[Prompt], limit: int | None) -> list[Prompt]:
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.text, prompt)
        if len(first) == limit:
            break
    return list(first.values())


def _from_shapes(
    split: str, limit: int | None, seed: int, options: PromptOptions, exhaust: bool
) -> list[Prompt]:
    if split not in SPLITS:
        raise UserError(f"{options.split} is {split!r}; accepted: {', '.join(SPLITS)}")
    per_tier = scene_count(TIERS[0], split) if limit is None else -(-limit // len(TIERS))
    try:
        captions = distinct_captions(seed, per_tier, split, exhaust=exhaust)
    except ValueError as error:
        raise UserError(f"{options.limit} is {limit}; accepted: fewer, as {error}") from error
    tiers = [[Prompt(text, str(tier)) for text, tier in captions if tier == own] for own in TIERS]
    turns = itertools.zip_longest(*tiers)
    return [prompt for turn in turns for prompt in turn if prompt is not None][:limit]
