"""The front of fixed baselines: what quality a user gets at a given cost without any policy.

Always true here: the front is the upper concave envelope of the baselines, cut at the best of them and flat
after it. Every point on it is within reach of an engineer who flips a coin for each image between two
neighbouring baselines, and spending less than allowed is always possible; that is why it is the fair bar.
Left of the cheapest baseline the front stands at that baseline's quality, which favours the baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.statistics import ROUNDING

Floats = NDArray[np.float64]

COST_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Point:
    """One method's mean cost (NFE, or NFE and looks) and mean quality."""

    name: str
    cost: float
    quality: float


def upper_envelope(points: Sequence[Point]) -> list[Point]:
    """Vertices of the front, by increasing cost and increasing quality (Andrew's monotone chain)."""
    assert points, "a front needs at least one baseline"
    hull: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, point.quality)):
        while hull and hull[-1].cost == point.cost:
            hull.pop()
        while len(hull) >= 2 and _above_or_on(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    best = max(range(len(hull)), key=lambda index: hull[index].quality)
    return hull[: best + 1]


def best_within(points: Sequence[Point], cost: float) -> Point:
    """The best baseline that costs no more than `cost`; the cheapest one if none does."""
    affordable = [point for point in points if point.cost <= cost + COST_TOLERANCE]
    if not affordable:
        return min(points, key=lambda point: (point.cost, -point.quality))
    return max(affordable, key=lambda point: (point.quality, -point.cost))


def envelope_weights(vertices: Sequence[Point], cost_R: ArrayLike) -> Floats:
    """Shares [R, V] in which the vertices are mixed at each cost; rows sum to 1, clamped at both ends."""
    costs_V = np.array([vertex.cost for vertex in vertices])
    hats_VV = np.eye(len(vertices))
    wanted_R = np.atleast_1d(np.asarray(cost_R, dtype=np.float64))
    return np.stack([np.interp(wanted_R, costs_V, hat_V) for hat_V in hats_VV], axis=1)


def cost_to_reach(vertices: Sequence[Point], quality: float) -> float | None:
    """The least cost at which the front has this quality; None if no baseline gets there."""
    if quality > vertices[-1].quality + ROUNDING:
        return None
    return float(np.interp(quality, [vertex.quality for vertex in vertices], [v.cost for v in vertices]))


def _above_or_on(left: Point, middle: Point, right: Point) -> bool:
    """True if the chord from left to right passes above the middle point, or through it."""
    rise = (right.quality - left.quality) * (middle.cost - left.cost)
    return (middle.quality - left.quality) * (right.cost - left.cost) <= rise
