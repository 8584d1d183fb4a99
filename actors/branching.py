"""Branch comparisons: one decision taken twice, and what the two ways teach.

An episode is forked at a decision. The trunk draws its action a as always, its twin draws b among the others;
both go on to their ends. What the learner takes from the pair is the unordered-set estimator of the policy
gradient for two draws without replacement (Kool, van Hoof and Welling 2020, arXiv 2002.06043); to fork and
compare is B2-DiffuRL (Hu et al. 2025, arXiv 2503.11240).

Always true here: in expectation the pair gives the policy gradient that one episode would (the discounted
state weights that PPO leaves out aside), with less variance; no critic is asked. Which decision forks does
not depend on what is drawn there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from actors.trajectory import Trajectory


@dataclass(frozen=True)
class Comparison:
    """What one side of a pair is worth to the learner.

    at: the decision that forked; gain: this side's discounted return from there less the other's; share: what
    the gain is multiplied by to be the advantage of the action taken there; weight: of every later decision,
    so that those of both sides together count as one episode's.
    """

    at: int
    gain: float
    share: float
    weight: float
    is_twin: bool


def compare(trunk: Trajectory, twin: Trajectory, gamma: float) -> tuple[Comparison, Comparison]:
    """The trunk's and the twin's side.

    With the probabilities p and q of the actions that they took at the fork, both have the share
    (1 - p)(1 - q) / (2 - p - q); the weights are (1 - q) / (2 - p - q) and (1 - p) / (2 - p - q).
    """
    at = trunk.forked_at
    assert at is not None
    assert at == twin.forked_at
    assert trunk.actions[at] != twin.actions[at], "both sides of a fork took the same action"
    # 1 - p from its logarithm: p is close to 1 where the policy is sure.
    rest, rest_twin = (-math.expm1(min(side.log_probs[at], 0.0)) for side in (trunk, twin))
    total = rest + rest_twin
    assert total > 0.0, "two actions with probabilities of 1"
    gain = discounted(trunk.rewards[at:], gamma) - discounted(twin.rewards[at:], gamma)
    share = rest * rest_twin / total
    return (
        Comparison(at, gain, share, rest_twin / total, is_twin=False),
        Comparison(at, -gain, share, rest / total, is_twin=True),
    )


def discounted(rewards: Sequence[float], gamma: float) -> float:
    """Sum of gamma^t rewards_t."""
    return math.fsum(gamma**t * reward for t, reward in enumerate(rewards))
