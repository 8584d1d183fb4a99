"""Prompts on their way into text encoders: cut to length with a warning, encoded in batches and once.

Always true here: what is cut off a prompt is said in one warning a prompt; the rows handed out do not
depend on what was asked before, but for the last bits that a batch's size may change.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

_LOG = logging.getLogger(__name__)
_SHOWN_LETTERS = 40

Columns = tuple[torch.Tensor, ...]
"""Tensors with one row a prompt."""


class PromptTokenizer:
    """A tokenizer at a fixed length. It warns of what is cut off, unless a longer-sighted one does."""

    def __init__(self, tokenizer: Any, max_length: int, *, warns: bool = True) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._warns = warns
        self._warned: set[str] = set()

    def __call__(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """ids_BL, and which of them belong to words: not begin, end or padding."""
        tokenizer = self._tokenizer
        if self._warns:
            self._warn(prompts)
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        )
        marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        special = torch.tensor([mark for mark in marks if mark is not None])
        return tokens.input_ids, tokens.attention_mask.bool() & ~torch.isin(tokens.input_ids, special)

    def _warn(self, prompts: Sequence[str]) -> None:
        whole = self._tokenizer(list(prompts), verbose=False).input_ids
        for prompt, ids in zip(prompts, whole, strict=True):
            cut = len(ids) - self._max_length
            if cut > 0 and prompt not in self._warned:
                self._warned.add(prompt)
                _LOG.warning(
                    "prompt %r... is too long for the text encoder: its last %d of %d tokens are cut off",
                    prompt[:_SHOWN_LETTERS],
                    cut,
                    len(ids),
                )


class PromptCache:
    """Remembers the columns of the prompts seen last; `encode` makes those of a batch of new ones."""

    def __init__(self, encode: Callable[[Sequence[str]], Columns], kept: int = 512) -> None:
        self._encode = encode
        self._kept = kept
        self._rows: OrderedDict[str, Columns] = OrderedDict()

    def __call__(self, prompts: Iterable[str]) -> Columns:
        """The columns of these prompts, one row each; those that are new are encoded as one batch."""
        wanted = list(prompts)
        missing = [prompt for prompt in dict.fromkeys(wanted) if prompt not in self._rows]
        if missing:
            self._rows.update(zip(missing, zip(*self._encode(missing), strict=True), strict=True))
        for prompt in wanted:
            self._rows.move_to_end(prompt)
        columns = tuple(
            torch.stack(part) for part in zip(*[self._rows[prompt] for prompt in wanted], strict=True)
        )
        while len(self._rows) > self._kept:
            self._rows.popitem(last=False)
        return columns
