"""What a measurement is: a number with how sure it is, or the reason why there is none. Read this file first.

Always true here: every metric that was asked for is in the results of every method, measured or missing; a
missing one has a reason and no number. A measured number is finite, and says which models it came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESULTS_FILE = "metrics.json"


class UnmeasurableError(ValueError):
    """These images have no such value; the message says why, in one line."""


@dataclass(frozen=True)
class Measured:
    """A metric of one method's images.

    ci95 is None where there is nothing to resample: one prompt, or one seed of a set metric. per_image holds
    a value for each record of the set, in order, where the metric has one. by_seed holds a set metric's value
    for each seed number, whose mean is `value`. model is the source of its features, NAME@IDENTITY.
    """

    metric: str
    value: float
    images: int
    ci95: tuple[float, float] | None = None
    per_image_N: Floats | None = None
    by_seed: tuple[float, ...] = ()
    model: str | None = None

    def __post_init__(self) -> None:
        assert math.isfinite(self.value), f"{self.metric} is not finite"
        assert self.per_image_N is None or len(self.per_image_N) == self.images


@dataclass(frozen=True)
class Missing:
    """A metric that could not be measured, and why."""

    metric: str
    reason: str

    def __post_init__(self) -> None:
        assert self.reason, f"{self.metric} is missing without a reason"


Measurement = Measured | Missing
