"""The reward formulas the project started from, number for number, kept for the ablation.

Always true: nothing here is configurable. Version 1 pays `DINO_similarity` for standing still and was
seen to end in "always continue"; version 2 divides by each prompt's own gap between two references and
explodes where the gap is small. Both are what `rewards_service.arithmetic` was made to avoid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rewards_service.contracts import METRICS, ScoreRow

NORMALISERS = {"clip": 0.05, "aesthetic": 0.3, "image_reward": 0.2}
SAVING_BONUS = 1.5
ENTROPY_BONUS = 0.2


@dataclass(frozen=True)
class SeedFormula:
    """Weights of one version: alpha for the steps, beta for the final image, the price of one NFE."""

    alpha: Mapping[str, float]
    beta: Mapping[str, float]
    c_nfe: float
    entropy_bonus: float = 0.0


SEED_V1 = SeedFormula(
    alpha={"clip": 1.0, "aesthetic": 0.5, "stability": 0.2, "image_reward": 0.8},
    beta={"clip": 2.0, "aesthetic": 1.0, "image_reward": 1.5},
    c_nfe=0.01,
)
SEED_V2 = SeedFormula(
    alpha={"clip": 0.5, "aesthetic": 0.3, "stability": 0.0, "image_reward": 0.4},
    beta={"clip": 1.0, "aesthetic": 0.4, "image_reward": 0.6},
    c_nfe=0.02,
    entropy_bonus=ENTROPY_BONUS,
)
#: By the name of the profile.
SEED_FORMULAS = {"seed_v1": SEED_V1, "seed_v2": SEED_V2}


def seed_quality(
    before: ScoreRow, after: ScoreRow, formula: SeedFormula, attention_entropy: float = 0.0
) -> float:
    """R_quality of one step: gains between consecutive clean predictions, and similarity itself.

    attention_entropy: normalised entropy of the attention maps if the action was a refinement, else 0.
    """
    reward = formula.entropy_bonus * attention_entropy
    for name, scale in NORMALISERS.items():
        metric = METRICS[name]
        reward += formula.alpha[name] * float(after[metric] - before[metric]) / scale
    if formula.alpha["stability"]:
        reward += formula.alpha["stability"] * float(np.dot(before["dino"], after["dino"]))
    return reward


def seed_terminal_v1(final: ScoreRow) -> float:
    """The final image's raw scores, weighted."""
    return sum(weight * float(final[METRICS[name]]) for name, weight in SEED_V1.beta.items())


def seed_terminal_v2(final: ScoreRow, ddim20: ScoreRow, ddim50: ScoreRow, nfe: float, max_nfe: int) -> float:
    """Each score's place between this prompt's two references, times a bonus for NFE saved.

    A metric whose references do not differ in the right direction gives nothing, as in the original.
    """
    places = 0.0
    for name, weight in SEED_V2.beta.items():
        metric = METRICS[name]
        gap = float(ddim50[metric] - ddim20[metric])
        if gap > 0:
            places += weight * float(final[metric] - ddim20[metric]) / gap
    return places * (1 + SAVING_BONUS * (max_nfe - nfe) / max_nfe)
