"""The price of compute, where a user asks for a number of NFE or for a quality instead of a price.

Always true: the price stays between its bounds, and above zero, so that it can always rise again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rewards_service.reward_config import RewardConfig


@dataclass
class DualVariable:
    """The price of one NFE, moved until an observed mean meets its target (a Lagrange multiplier).

    The mean may be that of NFE, or of quality above a floor: in both cases a mean above its target
    leaves room to save, and the price rises. `unit` is the distance from the target that counts as 1.
    Multiplicative steps keep the price's relative pace, whatever reward it is traded against.
    """

    price: float
    target: float
    rate: float = 0.1
    unit: float | None = None
    step: Literal["multiplicative", "additive"] = "multiplicative"
    lowest: float = 1e-5
    highest: float = 1.0

    def update(self, mean: float) -> float:
        """Moves the price by one observation of the mean, and returns it."""
        assert math.isfinite(mean), f"mean is {mean}"
        unit = (abs(self.target) or 1.0) if self.unit is None else self.unit
        excess = self.rate * (mean - self.target) / unit
        if self.step == "multiplicative":
            moved = max(self.price, self.lowest) * math.exp(float(np.clip(excess, -1.0, 1.0)))
        else:
            moved = self.price + excess
        self.price = float(np.clip(moved, self.lowest, self.highest))
        return self.price


def dual_variable(config: RewardConfig) -> DualVariable | None:
    """The price's controller for `target_nfe` or `quality_floor`; None where the price is fixed.

    Update it with the mean NFE, or with the mean of `quality` minus the reference's.
    """
    if config.target_nfe is not None:
        return DualVariable(config.c_nfe, config.target_nfe, config.dual_rate)
    if config.quality_floor is not None:
        return DualVariable(config.c_nfe, config.quality_floor, config.dual_rate, unit=1.0)
    return None
