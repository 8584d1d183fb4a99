"""RegionRefine: denoise a part of the image again, at lower noise.

One refinement of k inner steps costs 1 + k NFE:

1. mask: soft, 1 where to denoise again (see regions.py).
2. the clean prediction is noised to r_noise * t with fresh noise and denoised k times down to 0. Before
   each call the unmasked region is put back to the original noised to that very level (as in RePaint,
   Lugmayr et al. 2022), so that the network never sees two noise levels in one image.
3. the refined and the original clean predictions are blended and noised to the next schedule point, the
   unmasked region with the noise the trajectory already carried: there it is an ordinary DDIM step.

Always true here: where the mask is 0, the outcome does not depend on the inner steps at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from actors.schedule import NoiseLevel
from actors.solvers import add_noise, implied_noise, solver_step


@dataclass(eq=False)
class Refinement:
    """A refinement under way. `position` counts the inner denoiser calls already made."""

    mask_1HW: torch.Tensor
    original_CHW: torch.Tensor
    fresh_noise_CHW: torch.Tensor
    carried_noise_CHW: torch.Tensor
    levels: tuple[NoiseLevel, ...]
    position: int = 0

    @property
    def level(self) -> NoiseLevel:
        """Where the next inner call is made."""
        return self.levels[self.position]

    def start(self) -> torch.Tensor:
        """Latents for the first inner call."""
        return _noised(self.original_CHW, self.fresh_noise_CHW, self.level)

    def step(
        self, latents_CHW: torch.Tensor, clean_CHW: torch.Tensor, null_clean_CHW: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Latents for the next inner call, given what the last one predicted; None after the last.

        null_clean_CHW is the prediction without the prompt, for CFG++.
        """
        source = self.level
        self.position += 1
        if self.position == len(self.levels):
            return None
        inside_CHW = solver_step(
            latents_CHW[None],
            clean_CHW[None],
            [source],
            [self.level],
            null_clean_BCHW=None if null_clean_CHW is None else null_clean_CHW[None],
        )[0]
        outside_CHW = _noised(self.original_CHW, self.fresh_noise_CHW, self.level)
        return torch.lerp(outside_CHW, inside_CHW, self.mask_1HW)

    def resume(self, clean_CHW: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """Latents at a schedule point, from the last inner prediction.

        Fresh and carried noise are mixed so that the mixture keeps unit variance.
        """
        blended_CHW = torch.lerp(self.original_CHW, clean_CHW, self.mask_1HW)
        norm_1HW = (self.mask_1HW**2 + (1.0 - self.mask_1HW) ** 2).sqrt()
        noise_CHW = torch.lerp(self.carried_noise_CHW, self.fresh_noise_CHW, self.mask_1HW) / norm_1HW
        return _noised(blended_CHW, noise_CHW, level)


def make_refinement(
    mask_HW: torch.Tensor,
    latents_CHW: torch.Tensor,
    clean_CHW: torch.Tensor,
    fresh_noise_CHW: torch.Tensor,
    level: NoiseLevel,
    inner_levels: tuple[NoiseLevel, ...],
) -> Refinement:
    """A refinement of the clean prediction made at `level`, not yet begun."""
    return Refinement(
        mask_1HW=mask_HW[None],
        original_CHW=clean_CHW,
        fresh_noise_CHW=fresh_noise_CHW,
        carried_noise_CHW=implied_noise(latents_CHW[None], clean_CHW[None], [level])[0],
        levels=inner_levels,
    )


def inner_timesteps(timestep: float, share: float, steps: int) -> list[float]:
    """Where the inner calls are made: evenly from share * timestep towards 0."""
    return [share * timestep * (steps - step) / steps for step in range(steps)]


def _noised(clean_CHW: torch.Tensor, noise_CHW: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    return add_noise(clean_CHW[None], noise_CHW[None], [level])[0]
