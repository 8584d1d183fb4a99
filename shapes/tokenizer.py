"""The embedded world's tokenizer: an ordinary CLIPTokenizer over a closed lowercase vocabulary.

What always holds:
- Every word of `shapes.captions.VOCABULARY` is one token, so every caption fits `MAX_LENGTH`.
- Other lowercase words split into known pieces; characters other than a to z become the unknown token.
- The same vocabulary gives the same ids: words are taken in alphabetical order.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase

from transformers import CLIPTokenizer

from shapes.captions import VOCABULARY

MAX_LENGTH = 24
"""Tokens in a padded caption, begin and end included."""

_WORD_END = "</w>"
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"

Merge = tuple[str, str]


def build_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """Write the tokenizer's files into `folder` and load it from there, as diffusers pipelines do."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    merges = merges_for(VOCABULARY)
    letters = [*ascii_lowercase, *(letter + _WORD_END for letter in ascii_lowercase)]
    tokens = list(dict.fromkeys([*letters, *(left + right for left, right in merges), _BEGIN, _END]))
    ids = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_LENGTH
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def merges_for(words: Sequence[str]) -> list[Merge]:
    """Byte-pair merges, in order of rank, that join each word into one token.

    A word is first split as the tokenizer would with the merges so far; then its two leftmost pieces
    become one more merge, until it is whole. A new merge ranks last, so it acts only where the earlier
    ones have finished: it never breaks up an earlier word.
    """
    merges: list[Merge] = []
    for word in words:
        letters = [*word[:-1], word[-1] + _WORD_END]
        while len(pieces := apply_merges(letters, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
    return merges


def apply_merges(pieces: list[str], merges: Sequence[Merge]) -> list[str]:
    """Join neighbouring pieces, always the pair of the best rank first, until no merge applies."""
    rank = {merge: index for index, merge in enumerate(merges)}
    while True:
        ranks = [rank.get(pair, len(merges)) for pair in pairwise(pieces)]
        best = min(ranks, default=len(merges))
        if best == len(merges):
            return pieces
        position = ranks.index(best)
        pieces = [*pieces[:position], pieces[position] + pieces[position + 1], *pieces[position + 2 :]]
