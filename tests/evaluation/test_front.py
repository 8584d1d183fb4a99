"""The front of fixed baselines against brute force over all mixtures of two of them."""

import numpy as np
import pytest

from evaluation.front import Point, best_within, cost_to_reach, envelope_weights, upper_envelope


def quality_at(vertices: list[Point], cost: float) -> float:
    return float(envelope_weights(vertices, [cost])[0] @ [vertex.quality for vertex in vertices])


def best_mixture(points: list[Point], cost: float) -> float:
    """The best expected quality any one baseline, or any coin flip between two, gives within the cost."""
    best = max((p.quality for p in points if p.cost <= cost), default=-np.inf)
    for a in points:
        for b in points:
            if a.cost < cost < b.cost:
                share = (cost - a.cost) / (b.cost - a.cost)
                best = max(best, (1 - share) * a.quality + share * b.quality)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_envelope_is_the_best_of_all_mixtures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.choice([5, 7, 10, 10, 14, 20, 20, 30, 50], 9, replace=False)
    points = [Point(f"p{i}", float(c), float(rng.uniform(0.4, 0.9))) for i, c in enumerate(costs)]
    vertices = upper_envelope(points)
    for cost in (5.0, 6.3, 10.0, 13.0, 20.0, 29.0, 50.0, 80.0):
        assert quality_at(vertices, cost) == pytest.approx(best_mixture(points, cost))


def test_left_of_the_cheapest_baseline_it_stands_for_the_front() -> None:
    points = [Point("ten", 10, 0.7), Point("twenty", 20, 0.8)]
    assert quality_at(upper_envelope(points), 4.0) == pytest.approx(0.7)
    assert best_within(points, 4.0).name == "ten"


def test_best_within_takes_no_baseline_that_costs_more() -> None:
    points = [Point("ten", 10, 0.7), Point("wasteful", 12, 0.6), Point("twenty", 20, 0.8)]
    assert best_within(points, 19.9).name == "ten"
    assert best_within(points, 20.0).name == "twenty"


def test_cost_to_reach_inverts_the_envelope() -> None:
    vertices = upper_envelope([Point("a", 5, 0.5), Point("b", 15, 0.75), Point("c", 45, 0.8)])
    for quality in (0.55, 0.7, 0.76, 0.8):
        cost = cost_to_reach(vertices, quality)
        assert cost is not None
        assert quality_at(vertices, cost) == pytest.approx(quality)
    assert cost_to_reach(vertices, 0.81) is None
