"""Captions made from captions: almost right ones, to learn what a picture does not show, and mirrored ones.

Always true: what `altered` gives belongs to the training split, so no model meets a held-out caption.
"""

from __future__ import annotations

import numpy as np

from shapes.captions import COLORS, RELATIONS, SHAPES, SIZES, TEXTURES, split_of

_FAMILIES: tuple[tuple[str, ...], ...] = (tuple(COLORS), SHAPES, SIZES, ("two", "three", "four"), TEXTURES)


def altered(caption: str, rng: np.random.Generator) -> str:
    """The caption with one word replaced by another of its kind, or with a relation turned round.

    The result is a caption of the grammar that means another scene of the training split.
    """
    words = caption.split()
    choices = [(i, family) for i, word in enumerate(words) for family in _FAMILIES if _stem(word) in family]
    relations = [relation for relation in RELATIONS if f" {relation} " in caption]
    for _ in range(50):
        if relations and rng.random() < 0.3:
            old = relations[int(rng.integers(len(relations)))]
            new = RELATIONS[int(rng.integers(len(RELATIONS)))]
            candidate = caption.replace(f" {old} ", f" {new} ", 1)
        else:
            at, family = choices[int(rng.integers(len(choices)))]
            new = family[int(rng.integers(len(family)))]
            plural = words[at].removeprefix(_stem(words[at]))
            candidate = " ".join([*words[:at], new + _plural(new, plural), *words[at + 1 :]])
        if candidate != caption and _may_be_trained_on(candidate):
            return candidate
    raise AssertionError(f"no alteration of {caption!r} is a caption")


def _stem(word: str) -> str:
    for shape in SHAPES:
        if word in (shape, shape + "s", shape + "es"):
            return shape
    return word


def _plural(word: str, old: str) -> str:
    return ("es" if word.endswith("s") else "s") if old else ""


def mirrored(caption: str) -> str:
    """What the caption says of the picture flipped from left to right."""
    swap = {"left": "right", "right": "left"}
    return " ".join(swap.get(word, word) for word in caption.split())


def _may_be_trained_on(caption: str) -> bool:
    try:
        return split_of(caption) == "train"
    except ValueError:
        return False
