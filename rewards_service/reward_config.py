"""What a reward is configured by: its profile, weights, scales and prices.

Always true: a `RewardConfig` that exists is usable; every impossible value was refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from rewards_service.contracts import METRICS

Profile = Literal[
    "balanced",
    "quality",
    "efficiency",
    "terminal_only",
    "no_quality",
    "no_efficiency",
    "raw",
    "seed_v1",
    "seed_v2",
]

#: Profiles in which the price of an NFE is not `c_nfe`, so that moving it would change nothing.
_UNPRICED = ("terminal_only", "no_efficiency", "seed_v1", "seed_v2")


@dataclass(frozen=True)
class RewardConfig:
    """Weights, scales and prices of the reward. A metric without a weight counts nothing.

    The seed profiles bring numbers of their own and take none from here.
    """

    profile: Profile = "balanced"
    alpha: dict[str, float] = field(
        default_factory=lambda: {"clip": 1.0, "aesthetic": 0.5, "stability": 0.2, "image_reward": 0.8}
    )
    """Weights of what changes from state to state."""
    beta: dict[str, float] = field(
        default_factory=lambda: {"clip": 2.0, "aesthetic": 1.0, "image_reward": 1.5}
    )
    """Weights of the finished image's metrics; only their ratios matter."""
    scales: dict[str, float] = field(
        default_factory=lambda: {
            "clip": 0.05,
            "aesthetic": 0.3,
            "image_reward": 0.2,
            "image_reward_now": 0.2,
        }
    )
    """How much of each metric counts as 1; measured on the references where sigma is None."""
    terminal_weight: float = 1.0
    """What a final image is worth that is one sigma better than its reference."""
    sigma: float | None = None
    """Difference of two images' `quality` that counts as 1. None: a run measures it on its references, and
    `scales` before it; a number keeps both as they are given, for instance by an earlier calibration."""
    terminal_range: float = 1.0
    """Differences beyond so many sigmas count no more than these."""
    c_nfe: float = 0.01
    """Price of one NFE; where it starts, if a target or a floor is given."""
    gamma_d: float = 0.99
    """The discount, the same as the learner's."""
    target_nfe: float | None = None
    """Mean NFE an episode to aim at, by moving the price. NFE, not cost: looks are not counted."""
    quality_floor: float | None = None
    """Mean of `quality` minus the reference's to keep, at the highest price that allows it. Quality is a mean
    of metrics, each in units of its scale: 1 is what the images of one prompt differ by."""
    dual_rate: float = 0.6
    """How fast the price moves: the integral gain of `DualVariable`."""
    score_every: int = 1
    """Decisions between two scored previews."""

    def __post_init__(self) -> None:
        if self.profile not in get_args(Profile):
            raise ValueError(f"profile: {self.profile!r}; accepted: {', '.join(get_args(Profile))}")
        for option in ("alpha", "beta", "scales"):
            accepted = (*METRICS, "stability") if option == "alpha" else tuple(METRICS)
            for name, value in getattr(self, option).items():
                if name not in accepted:
                    raise ValueError(f"{option}: unknown metric {name!r}; accepted: {', '.join(accepted)}")
                positive = value > 0 if option == "scales" else value >= 0
                if not positive or not math.isfinite(value):
                    kind = "positive" if option == "scales" else "0 or more"
                    raise ValueError(f"{option}.{name}: {value}; accepted: {kind}")
        for name in METRICS:
            weighted = self.alpha.get(name) or self.beta.get(name)
            if weighted and name not in self.scales:
                raise ValueError(f"scales: {name!r} is missing; accepted: one of {', '.join(METRICS)} each")
        if sum(self.beta.values()) <= 0:
            raise ValueError(f"beta: {self.beta}; accepted: at least one weight above 0")
        if not 0 < self.gamma_d <= 1:
            raise ValueError(f"gamma_d: {self.gamma_d}; accepted: above 0, at most 1")
        if self.score_every < 1:
            raise ValueError(f"score_every: {self.score_every}; accepted: 1 or more")
        for option in ("c_nfe", "terminal_weight", "dual_rate"):
            if not 0 <= getattr(self, option) < math.inf:
                raise ValueError(f"{option}: {getattr(self, option)}; accepted: 0 or more")
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma: {self.sigma}; accepted: above 0, or null")
        if not 0 < self.terminal_range < math.inf:
            raise ValueError(f"terminal_range: {self.terminal_range}; accepted: above 0")
        self._check_price()

    def _check_price(self) -> None:
        if self.target_nfe is not None and not 0 < self.target_nfe < math.inf:
            raise ValueError(f"target_nfe: {self.target_nfe}; accepted: above 0, or null")
        if self.quality_floor is not None and not math.isfinite(self.quality_floor):
            raise ValueError(f"quality_floor: {self.quality_floor}; accepted: a number, or null")
        if self.target_nfe is not None and self.quality_floor is not None:
            raise ValueError(f"quality_floor: {self.quality_floor}; accepted: null, as target_nfe is given")
        for option in ("target_nfe", "quality_floor"):
            value = getattr(self, option)
            if value is not None and self.profile in _UNPRICED:
                raise ValueError(
                    f"{option}: {value}; accepted: null, as c_nfe is no price in profile {self.profile}"
                )
