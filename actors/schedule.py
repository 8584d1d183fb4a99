"""Noise schedules: at which timesteps the denoiser is asked, and how much signal and noise there is.

Always true here: a noisy latent is `alpha * clean + sigma * noise`. Variance-preserving models have
`alpha^2 + sigma^2 = 1`, flow-matching models `alpha + sigma = 1`; past this file nobody needs to know
which. Levels are Python floats (float64): they differ from sample to sample of one batch and are
rounded once, when a batch's coefficients are sent to the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.errors import UserError

SolverName = Literal["ddim", "dpmpp", "flow_euler", "lcm"]
Spacing = Literal["leading", "linspace", "trailing"]

DISTILLED_STEPS = 50
"""Latent consistency models know every 20th of 1,000 timesteps: the steps of the teacher's DDIM."""
FLOW_TIMESTEPS = 1000
"""Flow-matching denoisers are told `sigma * 1000`, as in diffusers."""


class NoiseLevel(NamedTuple):
    """A time on the noise schedule: what the denoiser is told, and the share of signal and of noise."""

    timestep: float
    alpha: float
    sigma: float


CLEAN = NoiseLevel(0.0, 1.0, 0.0)
"""Where every trajectory ends."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The points a trajectory visits, and the level of any other time (refinement leaves the points).

    alphas_cumprod holds one entry a training timestep; it is empty for flow-matching models.
    """

    points: tuple[NoiseLevel, ...]
    alphas_cumprod: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.points)

    def level_at(self, timestep: float) -> NoiseLevel:
        """The level at a timestep; variance-preserving models know whole timesteps only."""
        return noise_level(timestep, self.alphas_cumprod)


def noise_level(timestep: float, alphas_cumprod: NDArray[np.float64]) -> NoiseLevel:
    """Signal and noise at a timestep, rounded to a training timestep where the model has them."""
    if not alphas_cumprod.size:
        sigma = timestep / FLOW_TIMESTEPS
        return NoiseLevel(timestep, 1.0 - sigma, sigma)
    index = min(max(round(timestep), 0), alphas_cumprod.size - 1)
    signal = float(alphas_cumprod[index])
    return NoiseLevel(float(index), signal**0.5, (1.0 - signal) ** 0.5)


def make_schedule(
    num_steps: int,
    solver: SolverName,
    alphas_cumprod: NDArray[np.float64],
    *,
    spacing: Spacing | None = None,
    flow_shift: float = 1.0,
    timesteps: Sequence[int] | None = None,
) -> Schedule:
    """The schedule that diffusers' scheduler of that solver uses.

    `spacing` (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", table 2)
    is by default the one the solver is published with: leading with an offset of 1 for DDIM, linspace
    for DPM-Solver++. Flow-matching schedules are even in sigma from 1 to 1/num_steps and then shifted
    (Esser et al. 2024); `spacing` does not apply to them, nor to consistency models.

    `timesteps` are the points themselves, in place of all this.

    Raises UserError if the model has fewer timesteps than num_steps.
    """
    if timesteps is not None:
        largest = alphas_cumprod.size - 1 if alphas_cumprod.size else FLOW_TIMESTEPS
        if timesteps[0] > largest:
            raise UserError(f"engine.timesteps begin at {timesteps[0]}; accepted: up to {largest}")
        return Schedule(tuple(noise_level(float(t), alphas_cumprod) for t in timesteps), alphas_cumprod)
    if not alphas_cumprod.size:
        sigmas = np.linspace(1.0, 1.0 / num_steps, num_steps)
        sigmas = flow_shift * sigmas / (1.0 + (flow_shift - 1.0) * sigmas)
        timesteps = (sigmas * FLOW_TIMESTEPS).tolist()
    else:
        most = DISTILLED_STEPS if solver == "lcm" else alphas_cumprod.size - 1
        if num_steps > most:
            raise UserError(f"engine.num_steps is {num_steps}; accepted: 1 to {most}")
        default: Spacing = "leading" if solver == "ddim" else "linspace"
        timesteps = spaced_timesteps(num_steps, alphas_cumprod.size, spacing or default, solver).tolist()
    return Schedule(tuple(noise_level(float(t), alphas_cumprod) for t in timesteps), alphas_cumprod)


def spaced_timesteps(
    num_steps: int, training_timesteps: int, spacing: Spacing, solver: SolverName
) -> NDArray[np.int64]:
    """num_steps descending timesteps, as diffusers' scheduler of that solver spaces them.

    Its DPM-Solver++ counts the clean end as a point of the grid, its DDIM does not; its LCM takes num_steps
    of the timesteps that were distilled, whatever the spacing.
    """
    if solver == "lcm":
        distilled = np.arange(1, DISTILLED_STEPS + 1)[::-1] * (training_timesteps // DISTILLED_STEPS) - 1
        chosen = np.linspace(0, DISTILLED_STEPS, num_steps, endpoint=False).astype(np.int64)
        return distilled[chosen].astype(np.int64)
    points = num_steps + (solver == "dpmpp")
    if spacing == "trailing":
        grid = np.arange(training_timesteps, 0, -training_timesteps / num_steps).round()[:num_steps] - 1
    elif spacing == "linspace":
        grid = np.linspace(0, training_timesteps - 1, points).round()[::-1][:num_steps]
    else:
        grid = (np.arange(points) * (training_timesteps // points))[::-1][:num_steps] + 1
    timesteps: NDArray[np.int64] = grid.astype(np.int64)
    return timesteps
