"""One image's scores, as the reward reads them.

Always true here: what is read is finite, and float64 before anything is computed with it, so that no formula
overflows on scores in float32. A score that is missing or not finite is a ScoringError, whoever asks for it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards_service.contracts import ScoreRow
from rewards_service.scoring import ScoringError


def scalar(scores: ScoreRow, output: str) -> float:
    """The number that is called `output`. Raises ScoringError."""
    value = float(_present(scores, output))
    if not math.isfinite(value):
        raise ScoringError(f"score {output!r} is {value}; a reward needs a finite one")
    return value


def embedding(scores: ScoreRow, output: str) -> NDArray[np.floating]:
    """The embedding [D] that is called `output`. Raises ScoringError."""
    values_D: NDArray[np.floating] = np.asarray(_present(scores, output))
    if not np.isfinite(values_D).all():
        raise ScoringError(f"score {output!r} is not finite; a reward needs a finite one")
    return values_D


def _present(scores: ScoreRow, output: str) -> Any:
    try:
        return scores[output]
    except KeyError:
        present = ", ".join(sorted(scores)) or "none"
        raise ScoringError(f"score {output!r} is missing; there are: {present}") from None
