"""The price of compute, where a user asks for a number of NFE or for a quality instead of a price.

Always true: the price stays between its bounds; what it does next follows from `state` and the next mean
alone; a target that is not being approached is said, never silently sat out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rewards_service.reward_config import RewardConfig

_LOWEST, _HIGHEST = math.log(1e-5), math.log(1.0)
#: Proportional gain, in integral gains. It is what damps: a policy follows a price only after some
#: iterations, and an integral alone swings around its target.
_PROPORTIONAL = 10.0
_SMOOTHING = 0.5
#: A mean counts as met within this distance, in units.
TOLERANCE = 0.05
#: What is left of the gains whenever the mean has swung across its target and beyond that distance, and at
#: least; what they regain an iteration, up to 1. A policy may follow a price in one iteration or in twenty,
#: and nobody knows which beforehand.
_CALMER, _CALMEST, _REGAINED = 0.6, 0.3, 1.03
#: The integral of the integral: its gain, the distance within which it is learnt, and what an iteration
#: further off leaves of it. A policy gets surer of itself as it learns and spends less and less at the same
#: price; an integral alone lags behind a price that has to go on moving. What is seen far off is no trend.
_TREND, _NEAR, _FORGET = 0.2, 0.15, 0.8
#: The most that the price moves by its trend in one iteration, of its logarithm.
_STEEPEST = 0.06
#: Further off for so many updates, with the price at its bound or so much higher or lower while less than a
#: tenth of the distance is gone, the target is out of reach.
_PATIENCE = 20
_MOVED = math.log(2.0)
_NEARER = 0.9


@dataclass
class PriceState:
    """What a controller remembers. Plain numbers, so that JSON keeps it.

    log_price: the logarithm of the price in force; integral: the part of it that was accumulated; trend: what
    is added to that part in every iteration but while the price pushes against a bound; excess: smoothed
    distance from the target in units, None before the first update; side: 1 or -1, where it was when it was
    last beyond the tolerance; gain: what is left of the gains; recent: the last (excess, log_price), newest
    last.
    """

    log_price: float
    integral: float
    trend: float = 0.0
    excess: float | None = None
    side: int = 0
    gain: float = 1.0
    recent: list[tuple[float, float]] = field(default_factory=list)


class DualVariable:
    """The price of one NFE, moved until an observed mean meets its target (a Lagrange multiplier).

    Proportional and integral control as in Stooke, Achiam and Abbeel 2020 (arXiv 2007.03964; their derivative
    gained nothing here), on the price's logarithm, so that its relative pace is the same whatever reward it
    is traded against: log price = rate * 10 e + sum of (rate * e + trend), with e the exponentially smoothed
    (mean - target) / unit, at most 1 either way; rate falls with every swing and rises slowly to what was
    given; trend = sum of 0.2 rate^2 e near the target, as the right price moves while a policy learns.
    The mean may be that of NFE, or of quality above a floor: in both cases a mean above its target leaves
    room to save, and the price rises. Against winding up, the sum stays between the price's bounds, and rests
    while the price is at a bound that it pushes against.

    price: to start from; rate: the integral gain, an iteration; unit: the distance that counts as 1, by
    default the target's size.
    """

    def __init__(self, price: float, target: float, rate: float = 0.6, unit: float | None = None) -> None:
        self.target = target
        self.rate = rate
        self.unit = unit if unit is not None else abs(target) or 1.0
        start = float(np.clip(math.log(max(price, 1e-300)), _LOWEST, _HIGHEST))
        self._state = PriceState(start, start)

    @property
    def price(self) -> float:
        """The price in force."""
        return math.exp(self._state.log_price)

    @property
    def mean(self) -> float | None:
        """The smoothed mean (none before the first update)."""
        excess = self._state.excess
        return None if excess is None else self.target + excess * self.unit

    def update(self, mean: float) -> float:
        """Moves the price by one observation of the mean, and returns it."""
        assert math.isfinite(mean), f"mean is {mean}"
        state = self._state
        seen = float(np.clip((mean - self.target) / self.unit, -1.0, 1.0))
        before = seen if state.excess is None else state.excess
        excess = _SMOOTHING * before + (1.0 - _SMOOTHING) * seen
        side, gain = state.side, min(state.gain * _REGAINED, 1.0)
        if abs(excess) > TOLERANCE:
            side = 1 if excess > 0 else -1
            if side == -state.side:
                gain = max(gain * _CALMER, _CALMEST)
        rate = gain * self.rate
        pushes_on = (state.log_price >= _HIGHEST and excess > 0) or (
            state.log_price <= _LOWEST and excess < 0
        )
        trend = state.trend
        if abs(excess) > _NEAR:
            trend *= _FORGET
        elif not pushes_on:
            trend = float(np.clip(trend + _TREND * rate * rate * excess, -_STEEPEST, _STEEPEST))
        integral = state.integral if pushes_on else state.integral + rate * excess + trend
        integral = float(np.clip(integral, _LOWEST, _HIGHEST))
        log_price = float(np.clip(integral + rate * _PROPORTIONAL * excess, _LOWEST, _HIGHEST))
        recent = [*state.recent, (excess, log_price)][-_PATIENCE:]
        self._state = PriceState(log_price, integral, trend, excess, side, gain, recent)
        return self.price

    @property
    def out_of_reach(self) -> bool:
        """Whether the price has been pushed one way for long, and the mean comes no nearer to its target."""
        recent = np.array(self._state.recent)
        if len(recent) < _PATIENCE:
            return False
        excess_T, log_price_T = recent.T
        way = np.sign(excess_T[-1])
        if (way * excess_T < TOLERANCE).any():
            return False
        at_bound = np.isin(log_price_T, (_LOWEST, _HIGHEST)).mean() > 0.5
        moved = way * (log_price_T[-1] - log_price_T[0]) >= _MOVED
        quarter = _PATIENCE // 4
        nearer = abs(excess_T[-quarter:].mean()) < _NEARER * abs(excess_T[:quarter].mean())
        return bool(at_bound or (moved and not nearer))

    def state(self) -> dict[str, Any]:
        """All that decides how it goes on, as JSON takes it."""
        return asdict(self._state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; the target and the rate are its own."""
        recent = [(float(excess), float(log_price)) for excess, log_price in state["recent"]]
        self._state = PriceState(**{**state, "recent": recent})


def dual_variable(config: RewardConfig) -> DualVariable | None:
    """The price's controller for `target_nfe` or `quality_floor`; None where the price is fixed.

    Update it with the mean NFE, or with the mean of `quality` minus the reference's, of which 1 counts as 1.
    """
    if config.target_nfe is not None:
        return DualVariable(config.c_nfe, config.target_nfe, config.dual_rate)
    if config.quality_floor is not None:
        return DualVariable(config.c_nfe, config.quality_floor, config.dual_rate, unit=1.0)
    return None
