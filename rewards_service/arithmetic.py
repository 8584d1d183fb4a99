"""The reward, as pure functions of scores and costs; all that others need of it is imported from here.

`R = R_quality + R_efficiency + R_terminal` for each decision, without outer weights; R_quality is given in
two parts, shaping and stability. Invariants:
- Standing still never pays: the discounted shaping of an episode is what its first state alone fixes (Ng,
  Harada and Russell 1999; the potential of a finished episode is zero), and stability is never positive.
- R_terminal is bounded by its weight and range, whatever a prompt's references are.
- The held-out utility, by which trials are compared, knows no trial's weights.
- A score that is missing or not finite is a ScoringError, never a number.
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
from rewards_service.score_rows import embedding, scalar
from rewards_service.seed_rewards import (
    SEED_FORMULAS,
    SeedFormula,
    seed_gains,
    seed_similarity,
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
    """One number for each component of the reward: its factor in a profile, or its value.

    R_quality is quality + stability.
    """

    quality: float
    stability: float
    efficiency: float
    terminal: float = 0.0


#: What a profile multiplies each component by. `raw` is `balanced` without scales, sigma and clipping.
PROFILES: dict[str, Components] = {
    "balanced": Components(1.0, 1.0, 1.0, 1.0),
    "quality": Components(1.0, 1.0, 0.5, 1.0),
    "efficiency": Components(1.0, 1.0, 2.0, 1.0),
    "terminal_only": Components(0.0, 0.0, 0.0, 1.0),
    "no_quality": Components(0.0, 0.0, 1.0, 1.0),
    "no_efficiency": Components(1.0, 1.0, 0.0, 1.0),
    "raw": Components(1.0, 1.0, 1.0, 1.0),
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
    nfe: float | None = None
    """Without looks, which the seeds do not know; None: the cost."""


@dataclass(frozen=True)
class Ending:
    """A finished episode: the returned image's scores and the references' of the same prompt and seed.

    num_steps: of the schedule; short_reference is the cheaper of the seeds' two references. Only their
    second version needs these, and nfe.
    """

    final: ScoreRow
    reference: ScoreRow
    nfe: float
    num_steps: int
    short_reference: ScoreRow | None = None


def step_reward(step: Step, config: RewardConfig, reference: ScoreRow | None = None) -> Components:
    """R_quality and R_efficiency of one decision under the configured profile.

    reference: scores that potentials are measured from; a constant of the episode, so it moves returns
    by a constant and keeps them near zero.
    """
    if formula := SEED_FORMULAS.get(config.profile):
        return _seed_step_reward(step, formula)
    factors = PROFILES[config.profile]
    phi_before = potential(step.before, config, reference)
    phi_after, unsteadiness = phi_before, 0.0
    if step.ends:
        phi_after = 0.0
    elif step.after is not None:
        phi_after = potential(step.after, config, reference)
        weight = config.alpha.get("stability", 0.0)
        if weight and step.same_attempt:
            unsteadiness = weight * stability(embedding(step.before, "dino"), embedding(step.after, "dino"))
    return Components(
        quality=factors.quality * shaping(phi_before, phi_after, config.gamma_d),
        stability=factors.stability * unsteadiness,
        efficiency=factors.efficiency * efficiency(step.cost, config.c_nfe),
    )


def _seed_step_reward(step: Step, formula: SeedFormula) -> Components:
    gains, similarity = formula.entropy_bonus * step.attention_entropy, 0.0
    if step.after is not None and not step.ends:
        gains += seed_gains(step.before, step.after, formula)
        similarity = seed_similarity(step.before, step.after, formula)
    nfe = step.cost if step.nfe is None else step.nfe
    # The seeds count one NFE for stopping.
    return Components(gains, similarity, efficiency(1.0 if step.ends else nfe, formula.c_nfe))


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
        return seed_terminal_v2(ending.final, *references, ending.nfe, ending.num_steps)
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
            value = scalar(scores, metric) - (0.0 if reference is None else scalar(reference, metric))
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
        weight * scalar(scores, METRICS[name]) / _scale(name, config) for name, weight in weights.items()
    )
    value = total / sum(weights.values())
    assert math.isfinite(value), f"quality of {dict(scores)} is {value}"
    return value


def required_outputs(config: RewardConfig) -> tuple[str, ...]:
    """The scores that the configured reward needs of previews and references: no others are asked for.

    `quality` is among the statistics of every run, so its metrics are there with the seeds' formulas too.
    """
    formula = SEED_FORMULAS.get(config.profile)
    weights: list[Mapping[str, float]] = [config.beta]
    weights += [config.alpha] if formula is None else [formula.alpha, formula.beta]
    outputs = [metric for name, metric in METRICS.items() if any(each.get(name) for each in weights)]
    return (*outputs, "dino") if any(each.get("stability") for each in weights) else tuple(outputs)


def utility(quality: float, cost: float, price: float = HELD_OUT_PRICE) -> float:
    """The held-out utility of a policy: mean quality, in a unit that no trial chooses, less its cost.

    quality: a raw score such as the mean `image_reward`, never `quality(scores, config)`, which a trial
    could scale; cost: mean cost of an episode in NFE.
    """
    return quality - price * cost


def _scale(name: str, config: RewardConfig) -> float:
    return 1.0 if config.profile == "raw" else config.scales[name]
