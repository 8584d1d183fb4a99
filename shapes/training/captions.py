"""Captions that are almost right, for models that must learn what a picture does not show."""

from __future__ import annotations

import numpy as np

from shapes.captions import COLORS, RELATIONS, SHAPES, SIZES, TEXTURES, SceneSpec, parse

_FAMILIES: tuple[tuple[str, ...], ...] = (tuple(COLORS), SHAPES, SIZES, ("two", "three", "four"), TEXTURES)


def altered(caption: str, rng: np.random.Generator) -> str:
    """The caption with one word replaced by another of its kind, or with a relation turned round.

    The result is a caption of the grammar that means another scene.
    """
    words = caption.split()
    choices = [(i, family) for i, word in enumerate(words) for family in _FAMILIES if _stem(word) in family]
    relations = [relation for relation in RELATIONS if f" {relation} " in caption]
    for _ in range(20):
        if relations and rng.random() < 0.3:
            old = relations[int(rng.integers(len(relations)))]
            new = RELATIONS[int(rng.integers(len(RELATIONS)))]
            candidate = caption.replace(f" {old} ", f" {new} ", 1)
        else:
            at, family = choices[int(rng.integers(len(choices)))]
            new = family[int(rng.integers(len(family)))]
            plural = words[at].removeprefix(_stem(words[at]))
            candidate = " ".join([*words[:at], new + _plural(new, plural), *words[at + 1 :]])
        if candidate != caption and _readable(candidate):
            return candidate
    raise AssertionError(f"no alteration of {caption!r} is a caption")


def _stem(word: str) -> str:
    for shape in SHAPES:
        if word in (shape, shape + "s", shape + "es"):
            return shape
    return word


def _plural(word: str, old: str) -> str:
    return ("es" if word.endswith("s") else "s") if old else ""


def _readable(caption: str) -> SceneSpec | None:
    try:
        return parse(caption)
    except ValueError:
        return None
