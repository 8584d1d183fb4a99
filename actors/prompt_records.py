"""A prompt, and how a row of any format becomes one: which columns hold what.

Always true here: a prompt is text, not blank, of at most 300 words; a row that has none is the user's mistake
and is named, never left out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from actors.errors import UserError

MAX_WORDS = 300
#: What PartiPrompts calls the kind of difficulty, and GenEval its task, if no `tier` is there; either counts
#: only beside the other columns of its benchmark, as the names mean other things elsewhere.
_BENCHMARK_TIERS = {"challenge": {"prompt", "category"}, "tag": {"prompt", "include"}}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, how hard its source says it is, and what it is about."""

    text: str
    tier: str | None = None
    category: str | None = None


class Columns(NamedTuple):
    """What the user calls the columns of a table; None: `prompt`, and `tier` or what a benchmark has."""

    prompt: str | None = None
    tier: str | None = None


class Row(NamedTuple):
    """A row of a table, and how to name it in a message ("prompts.source is 'a.tsv', line 3")."""

    where: str
    values: Mapping[str, Any]


class _Found(NamedTuple):
    prompt: str
    tier: str | None
    category: str | None


def prompts_of(rows: Iterable[Row], columns: Columns) -> Iterator[Prompt]:
    """The prompt of each row. Raises UserError for the first one that has none."""
    for where, values in rows:
        found = _find(tuple(values), columns, where)
        text = values[found.prompt]
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: no `{found.prompt}`; accepted: a text `{found.prompt}`")
        yield checked(
            where,
            Prompt(text.strip(), *(_label(values[name]) if name else None for name in found[1:])),
        )


def find_columns(names: Iterable[str], columns: Columns, where: str) -> list[str]:
    """The columns of a table that are needed, the prompt's first; UserError if one is not there."""
    return [name for name in _find(tuple(names), columns, where) if name is not None]


def checked(where: str, prompt: Prompt) -> Prompt:
    """The prompt, if it is text of a size that makes sense. Raises UserError."""
    if "\0" in prompt.text:
        raise UserError(f"{where}: not text (a zero byte); accepted: UTF-8 text")
    try:
        "".join(text for text in (prompt.text, prompt.tier, prompt.category) if text).encode()
    except UnicodeEncodeError as error:  # JSON can write what no file and no tokenizer takes
        raise UserError(f"{where}: not text (half of a surrogate pair); accepted: UTF-8 text") from error
    if (words := len(prompt.text.split())) > MAX_WORDS:
        raise UserError(f"{where}: {words} words; accepted: at most {MAX_WORDS}")
    return prompt


def _find(names: tuple[str, ...], columns: Columns, where: str) -> _Found:
    found = _recognised(names, columns)
    for wanted, name in (("prompt", found.prompt), ("tier", found.tier)):
        if name is not None and name not in names:
            there = ", ".join(names) or "none"
            raise UserError(f"{where}: no {wanted} column `{name}`; accepted: one of {there}")
    return found


@functools.lru_cache(maxsize=64)  # rows of JSON lines each bring their own names, mostly the same
def _recognised(names: tuple[str, ...], columns: Columns) -> _Found:
    """Capitals do not matter unless the user has named a column; the prompt's may be missing from `names`."""
    by_lower = {name.lower(): name for name in reversed(names)}
    tier = columns.tier or by_lower.get("tier")
    for name, beside in _BENCHMARK_TIERS.items():
        if tier is None and beside <= by_lower.keys():
            tier = by_lower.get(name)
    return _Found(columns.prompt or by_lower.get("prompt", "prompt"), tier, by_lower.get("category"))


def _label(value: Any) -> str | None:
    """A tier or category as text; a number that a table keeps as 2.0, for its gaps, is 2 again."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None
