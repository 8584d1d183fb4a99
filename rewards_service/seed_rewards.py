"""The reward formulas the project started from, number for number, kept for the ablation.

Always true here: nothing here is configurable. Version 1 pays `DINO_similarity` for standing still and was
seen to end in "always continue"; version 2 divides by each prompt's own gap between two references and
explodes where the gap is small. Both are what `rewards_service.arithmetic` was made to avoid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rewards_service.contracts import METRICS, ScoreRow
from rewards_service.score_rows import embedding, scalar

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


def seed_gains(before: ScoreRow, after: ScoreRow, formula: SeedFormula) -> float:
    """R_quality without its similarity: weighted gains between consecutive clean predictions."""
    return sum(
        formula.alpha[name] * _gain(before, after, name) / scale for name, scale in NORMALISERS.items()
    )


def seed_similarity(before: ScoreRow, after: ScoreRow, formula: SeedFormula) -> float:
    """The rest of R_quality: the weighted similarity itself, 1 for the same picture."""
    weight = formula.alpha["stability"]
    return weight * float(np.dot(embedding(before, "dino"), embedding(after, "dino"))) if weight else 0.0


def seed_terminal_v1(final: ScoreRow) -> float:
    """The final image's raw scores, weighted."""
    return sum(weight * scalar(final, METRICS[name]) for name, weight in SEED_V1.beta.items())


def seed_terminal_v2(
    final: ScoreRow, ddim20: ScoreRow, ddim50: ScoreRow, nfe: float, num_steps: int
) -> float:
    """Each score's place between this prompt's two references, times a bonus for NFE saved.

    num_steps: of the schedule, N_max. A metric whose references do not differ in the right direction gives
    nothing, as in the original.
    """
    places = 0.0
    for name, weight in SEED_V2.beta.items():
        gap = _gain(ddim20, ddim50, name)
        if gap > 0:
            places += weight * _gain(ddim20, final, name) / gap
    return places * (1 + SAVING_BONUS * (num_steps - nfe) / num_steps)


def _gain(before: ScoreRow, after: ScoreRow, name: str) -> float:
    return scalar(after, METRICS[name]) - scalar(before, METRICS[name])
