"""The reward, as pure functions of scores and costs; all that others need of it is imported from here.

`R = R_quality + R_efficiency + R_terminal` for each decision, without outer weights. Invariants:
- Standing still never pays: R_quality is a difference of potentials (Ng, Harada and Russell 1999), with
  the potential of a finished episode zero, and stability, never positive.
- R_terminal is bounded by its weight and range, whatever a prompt's references are.
- The held-out utility, by which trials are compared, knows no trial's weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rewards_service.contracts import METRICS, ScoreRow
from rewards_service.dual_variable import DualVariable, dual_variable
from rewards_service.reward_config import RewardConfig
from rewards_service.seed_rewards import (
    SEED_FORMULAS,
    seed_quality,
    seed_terminal_v1,
    seed_terminal_v2,
)

__all__ = [
    "HELD_OUT_PRICE",
    "PROFILES",
    "Components",
    "DualVariable",
    "Ending",
    "RewardConfig",
    "Step",
    "dual_variable",
    "efficiency",
    "final_reward",
    "potential",
    "quality",
    "required_outputs",
    "shaping",
    "stability",
    "step_reward",
    "terminal",
    "utility",
]

HELD_OUT_PRICE = 0.005
"""Quality that one NFE must bring to be worth it, in the utility that compares trials."""


class Components(NamedTuple):
    """One number for each component of the reward: its factor in a profile, or its value."""

    quality: float
    efficiency: float
    terminal: float = 0.0


#: What a profile multiplies each component by. `raw` is `balanced` without scales, sigma and clipping.
PROFILES: dict[str, Components] = {
    "balanced": Components(1.0, 1.0, 1.0),
    "quality": Components(1.0, 0.5, 1.0),
    "efficiency": Components(1.0, 2.0, 1.0),
    "terminal_only": Components(0.0, 0.0, 1.0),
    "no_quality": Components(0.0, 1.0, 1.0),
    "no_efficiency": Components(1.0, 0.0, 1.0),
    "raw": Components(1.0, 1.0, 1.0),
}


@dataclass(frozen=True)
class Step:
    """What one decision did, from the last scored state to the next.

    before, after: scores of the two previews; after is None where the next preview was not scored, and
    without meaning where the decision ended the episode. cost: NFE, with looks at their price.
    """

    before: ScoreRow
    after: ScoreRow | None
    cost: float
    ends: bool = False
    same_attempt: bool = True
    """False if a restart lies between: its other picture is not instability."""
    attention_entropy: float = 0.0
    """Normalised, of a refinement; the seeds' second version pays for it."""


@dataclass(frozen=True)
class Ending:
    """A finished episode: the returned image's scores and the references' of the same prompt and seed.

    short_reference is the cheaper of the seeds' two references, and only their second version needs it.
    """

    final: ScoreRow
    reference: ScoreRow
    nfe: float
    max_nfe: int
    short_reference: ScoreRow | None = None


def step_reward(step: Step, config: RewardConfig, reference: ScoreRow | None = None) -> Components:
    """R_quality and R_efficiency of one decision under the configured profile.

    reference: scores that potentials are measured from; a constant of the episode, so it moves returns
    by a constant and keeps them near zero.
    """
    if formula := SEED_FORMULAS.get(config.profile):
        gains = 0.0
        if step.after is not None and not step.ends:
            gains = seed_quality(step.before, step.after, formula, step.attention_entropy)
        # The seeds count one NFE for stopping.
        return Components(gains, efficiency(1.0 if step.ends else step.cost, formula.c_nfe))
    factors = PROFILES[config.profile]
    phi_before = potential(step.before, config, reference)
    phi_after, gains = phi_before, 0.0
    if step.ends:
        phi_after = 0.0
    elif step.after is not None:
        phi_after = potential(step.after, config, reference)
        weight = config.alpha.get("stability", 0.0)
        if weight and step.same_attempt:
            gains += weight * stability(step.before["dino"], step.after["dino"])
    gains += shaping(phi_before, phi_after, config.gamma_d)
    return Components(factors.quality * gains, factors.efficiency * efficiency(step.cost, config.c_nfe))


def final_reward(ending: Ending, config: RewardConfig, sigma: float) -> float:
    """R_terminal of an episode under the configured profile, added to its last decision's reward.

    sigma: the differences of `quality` that count as 1, one number for all prompts.
    """
    if config.profile == "seed_v1":
        return seed_terminal_v1(ending.final)
    if config.profile == "seed_v2":
        if ending.short_reference is None:
            raise ValueError("profile: 'seed_v2' without the scores of DDIM-20; accepted: episodes with both")
        references = ending.short_reference, ending.reference
        return seed_terminal_v2(ending.final, *references, ending.nfe, ending.max_nfe)
    final, reference = quality(ending.final, config), quality(ending.reference, config)
    weight = PROFILES[config.profile].terminal * config.terminal_weight
    if config.profile == "raw":
        return weight * (final - reference)
    return weight * terminal(final, reference, sigma, config.terminal_range)


def potential(scores: ScoreRow, config: RewardConfig, reference: ScoreRow | None = None) -> float:
    """`Phi = sum alpha_k * metric_k / scale_k`, its metrics measured from the reference's if one is given."""
    phi = 0.0
    for name, metric in METRICS.items():
        weight = config.alpha.get(name, 0.0)
        if weight:
            value = float(scores[metric]) - (0.0 if reference is None else float(reference[metric]))
            phi += weight * value / _scale(name, config)
    assert math.isfinite(phi), f"potential of {dict(scores)} is {phi}"
    return phi


def shaping(phi_before: float, phi_after: float, gamma: float) -> float:
    """`gamma * Phi(s') - Phi(s)`: discounted, it telescopes to what the episode's ends alone fix."""
    return gamma * phi_after - phi_before


def stability(dino_before: ArrayLike, dino_after: ArrayLike) -> float:
    """Cosine similarity of two unit embeddings, minus 1: zero for the same picture, else negative."""
    return min(float(np.dot(np.asarray(dino_before), np.asarray(dino_after))) - 1.0, 0.0)


def efficiency(cost: float, c_nfe: float) -> float:
    """What a decision's compute costs."""
    return -c_nfe * cost


def terminal(quality: float, reference: float, sigma: float, limit: float = 1.0) -> float:
    """`clip((Q - Q_reference) / sigma, -limit, limit)`."""
    assert sigma > 0, f"sigma is {sigma}"
    return float(np.clip((quality - reference) / sigma, -limit, limit))


def quality(scores: ScoreRow, config: RewardConfig) -> float:
    """Q of an image: the mean of its scaled metrics, weighted by beta."""
    weights = {name: weight for name, weight in config.beta.items() if weight}
    total = sum(
        weight * float(scores[METRICS[name]]) / _scale(name, config) for name, weight in weights.items()
    )
    value = total / sum(weights.values())
    assert math.isfinite(value), f"quality of {dict(scores)} is {value}"
    return value


def required_outputs(config: RewardConfig) -> tuple[str, ...]:
    """The scores that the configured reward needs, so that nothing else is asked for."""
    weights = SEED_FORMULAS.get(config.profile, config)
    alpha: Mapping[str, float] = weights.alpha
    beta: Mapping[str, float] = weights.beta
    outputs = [metric for name, metric in METRICS.items() if alpha.get(name) or beta.get(name)]
    return (*outputs, "dino") if alpha.get("stability") else tuple(outputs)


def utility(quality: float, cost: float, price: float = HELD_OUT_PRICE) -> float:
    """The held-out utility of a policy: mean quality, in a unit that no trial chooses, less its cost.

    quality: a raw score such as the mean `image_reward`, never `quality(scores, config)`, which a trial
    could scale; cost: mean cost of an episode in NFE.
    """
    return quality - price * cost


def _scale(name: str, config: RewardConfig) -> float:
    return 1.0 if config.profile == "raw" else config.scales[name]
