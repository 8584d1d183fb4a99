"""What a policy does and where it fails, read off the rows of an evaluation.

Always true here: pure functions of rows, by rules that are fixed beforehand; nothing is picked by eye. A
failure is an image on which the best baseline of no higher mean cost, on the same prompt and noise, was
better.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.front import Point, best_within
from evaluation.rows import ImageRow

CLEAR = 0.1
"""A difference in quality that counts as a clear loss or gain of one image."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """How much compute the images of one group got: mean and 10, 50 and 90% quantiles of NFE."""

    images: int
    nfe: float
    quantiles: tuple[float, float, float]
    attempts: float
    looks: float


@dataclass(frozen=True, slots=True)
class Losses:
    """How the images of one group compare with the reference's, image by image.

    difference: mean; lost and gained: shares of images that differ by more than CLEAR.
    """

    images: int
    nfe: float
    difference: float
    lost: float
    gained: float


@dataclass(frozen=True, slots=True)
class Failure:
    """An image of the policy, and how much better the reference's was."""

    row: ImageRow
    loss: float


def reference_of(policy: Sequence[ImageRow], others: Mapping[str, Sequence[ImageRow]]) -> str:
    """The best of the other methods whose mean cost is no higher (bounds left out by the caller)."""
    points = [
        Point(name, float(np.mean([row.cost for row in rows])), float(np.mean([row.quality for row in rows])))
        for name, rows in others.items()
    ]
    return best_within(points, float(np.mean([row.cost for row in policy]))).name


def failures(policy: Sequence[ImageRow], reference: Sequence[ImageRow], count: int) -> list[Failure]:
    """The `count` largest losses, one a prompt, the largest first."""
    better = {row.key: row.quality for row in reference}
    losses = [Failure(row, better[row.key] - row.quality) for row in policy]
    chosen: dict[str, Failure] = {}
    for failure in sorted(losses, key=lambda one: (-one.loss, one.row.prompt, one.row.seed)):
        if failure.loss > 0:
            chosen.setdefault(failure.row.prompt, failure)
    return list(chosen.values())[:count]


def by_tier(row: ImageRow) -> str | None:
    """The group of the row's tier."""
    return row.tier


def by_category(row: ImageRow) -> str | None:
    """The group of what the prompt is about (PartiPrompts' category)."""
    return row.category


def by_attempts(row: ImageRow) -> str | None:
    """The group of how many tries the image took."""
    return f"{row.attempts} {'try' if row.attempts == 1 else 'tries'}"


def stopping(rows: Iterable[ImageRow], group: Callable[[ImageRow], str | None]) -> dict[str, Stopping]:
    """By group, in the order of names; rows without a group are left out."""
    return {
        name: Stopping(
            images=len(members),
            nfe=float(np.mean([row.nfe for row in members])),
            quantiles=_quantiles([row.nfe for row in members]),
            attempts=float(np.mean([row.attempts for row in members])),
            looks=float(np.mean([row.looks for row in members])),
        )
        for name, members in _groups(rows, group).items()
    }


def losses(
    policy: Sequence[ImageRow],
    reference: Sequence[ImageRow],
    group: Callable[[ImageRow], str | None],
) -> dict[str, Losses]:
    """The policy against the reference on the same images, by group of the policy's rows."""
    theirs = {row.key: row.quality for row in reference}
    found = {}
    for name, members in _groups(policy, group).items():
        difference = np.array([row.quality - theirs[row.key] for row in members])
        found[name] = Losses(
            images=len(members),
            nfe=float(np.mean([row.nfe for row in members])),
            difference=float(difference.mean()),
            lost=float((difference < -CLEAR).mean()),
            gained=float((difference > CLEAR).mean()),
        )
    return found


def _groups(rows: Iterable[ImageRow], group: Callable[[ImageRow], str | None]) -> dict[str, list[ImageRow]]:
    members: dict[str, list[ImageRow]] = defaultdict(list)
    for row in rows:
        if (name := group(row)) is not None:
            members[name].append(row)
    return dict(sorted(members.items()))


def _quantiles(values: Sequence[int]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    return float(low), float(middle), float(high)
