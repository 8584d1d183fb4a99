"""Solvers: one update for DDIM, DPM-Solver++(2M), LCM and flow-matching Euler, over per-sample times.

Always true here: pure functions; every sample of a batch has its own source, target and history; each
solver equals diffusers' scheduler of that name. They are one formula: with the clean prediction x0, fresh
noise z, its standard deviation n and `keep = sqrt(sigma_t^2 - n^2) / sigma_s`,

    x_t = keep * x_s + (alpha_t - alpha_s * keep) * x0 + n * z

With n = 0 it is DDIM (Song et al. 2020), first-order DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095)
and, with alpha = 1 - sigma, the Euler step of flow matching. The second-order multistep solver puts
`x0 + (h / 2 h_0) * (x0 - previous x0)` in the place of x0, where h and h_0 are the coming and the last
step in log(alpha / sigma). DDIM with eta > 0 has n as in its formula 16; a latent consistency model (Luo
et al. 2023, arXiv 2310.04378) has n = sigma_t: it keeps nothing but x0.

CFG++ (Chung et al. 2024, arXiv 2406.08070) renoises with the noise that is predicted without the prompt.
That adds `alpha_s * keep * (x0 - x0_null)` to any of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from actors.contracts import PredictionType
from actors.schedule import NoiseLevel

LCM_SIGMA_DATA = 0.5
LCM_TIMESTEP_SCALING = 10.0


def per_sample(rows: Sequence[Sequence[float]], like: torch.Tensor) -> list[torch.Tensor]:
    """Coefficients of each sample as columns that broadcast over B x C x H x W; one transfer for all."""
    table = torch.tensor(rows, dtype=torch.float64).to(like.device, like.dtype)
    return list(table.T.reshape(-1, len(rows), *[1] * (like.ndim - 1)))


def clean_prediction(
    prediction_BCHW: torch.Tensor,
    latents_BCHW: torch.Tensor,
    levels: Sequence[NoiseLevel],
    prediction_type: PredictionType,
) -> torch.Tensor:
    """x0 from what the network predicts: the noise, the velocity (Salimans & Ho 2022) or the flow."""
    alpha, sigma = per_sample([(level.alpha, level.sigma) for level in levels], latents_BCHW)
    if prediction_type == "epsilon":
        return (latents_BCHW - sigma * prediction_BCHW) / alpha
    if prediction_type == "v_prediction":
        return alpha * latents_BCHW - sigma * prediction_BCHW
    return latents_BCHW - sigma * prediction_BCHW


def add_noise(
    clean_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, levels: Sequence[NoiseLevel]
) -> torch.Tensor:
    """The clean latents noised to each sample's level."""
    alpha, sigma = per_sample([(level.alpha, level.sigma) for level in levels], clean_BCHW)
    return alpha * clean_BCHW + sigma * noise_BCHW


def implied_noise(
    latents_BCHW: torch.Tensor, clean_BCHW: torch.Tensor, levels: Sequence[NoiseLevel]
) -> torch.Tensor:
    """The noise that, with this clean prediction, makes these latents."""
    alpha, sigma = per_sample([(level.alpha, level.sigma) for level in levels], latents_BCHW)
    return (latents_BCHW - alpha * clean_BCHW) / sigma


def solver_step(
    latents_BCHW: torch.Tensor,
    clean_BCHW: torch.Tensor,
    sources: Sequence[NoiseLevel],
    targets: Sequence[NoiseLevel],
    *,
    previous_clean_BCHW: torch.Tensor | None = None,
    previous: Sequence[NoiseLevel | None] | None = None,
    null_clean_BCHW: torch.Tensor | None = None,
    noise_BCHW: torch.Tensor | None = None,
    noise_scales: Sequence[float] | None = None,
) -> torch.Tensor:
    """Take each sample from its source level to its target level.

    previous_clean_BCHW and previous are the multistep solver's history; a sample whose entry in
    `previous` is None takes a first-order step and its row of previous_clean_BCHW does not matter.
    null_clean_BCHW is x0 without the prompt, for CFG++; noise_BCHW is fresh noise and noise_scales its
    standard deviations, for solvers that are not deterministic.
    """
    history = previous if previous is not None else [None] * len(sources)
    scales = noise_scales if noise_scales is not None else [0.0] * len(sources)
    rows = [
        _coefficients(source, target, last, scale)
        for source, target, last, scale in zip(sources, targets, history, scales, strict=True)
    ]
    keep, pull, forward, renoise, scale = per_sample(rows, latents_BCHW)
    guided_BCHW = clean_BCHW
    if previous_clean_BCHW is not None:
        clean_BCHW = clean_BCHW + forward * (clean_BCHW - previous_clean_BCHW)
    stepped_BCHW = keep * latents_BCHW + pull * clean_BCHW
    if null_clean_BCHW is not None:
        stepped_BCHW = stepped_BCHW + renoise * (guided_BCHW - null_clean_BCHW)
    if noise_BCHW is not None:
        stepped_BCHW = stepped_BCHW + scale * noise_BCHW
    return stepped_BCHW


def _coefficients(
    source: NoiseLevel, target: NoiseLevel, previous: NoiseLevel | None, noise_scale: float
) -> tuple[float, float, float, float, float]:
    """Of x_s, of x0, of its extrapolation, of CFG++'s difference, and of fresh noise."""
    carried = target.sigma if noise_scale == 0.0 else math.sqrt(max(target.sigma**2 - noise_scale**2, 0.0))
    keep = carried / source.sigma
    pull = target.alpha - source.alpha * carried / source.sigma
    return keep, pull, extrapolation(previous, source, target), source.alpha * keep, noise_scale


def ddim_noise(source: NoiseLevel, target: NoiseLevel, eta: float) -> float:
    """Standard deviation of the noise that DDIM adds (Song et al. 2020, formula 16); eta = 1 is DDPM."""
    shrink = 1.0 - (source.alpha / target.alpha) ** 2
    return eta * target.sigma / source.sigma * math.sqrt(max(shrink, 0.0))


def consistency_prediction(
    clean_BCHW: torch.Tensor, latents_BCHW: torch.Tensor, levels: Sequence[NoiseLevel]
) -> torch.Tensor:
    """A latent consistency model's x0: skip and output scaled so that it is the identity at timestep 0.

    The scalings of Song et al. 2023 (arXiv 2303.01469), with the constants that LCMs are distilled with.
    """
    rows = []
    for level in levels:
        time = level.timestep * LCM_TIMESTEP_SCALING
        square = time**2 + LCM_SIGMA_DATA**2
        rows.append((LCM_SIGMA_DATA**2 / square, time / math.sqrt(square)))
    skip, out = per_sample(rows, latents_BCHW)
    return skip * latents_BCHW + out * clean_BCHW


def extrapolation(previous: NoiseLevel | None, source: NoiseLevel, target: NoiseLevel) -> float:
    """How far DPM-Solver++(2M) extrapolates the clean prediction: h / (2 h_0).

    0 without history, and for the step to the clean end (diffusers' `lower_order_final`).
    """
    if previous is None or target.sigma == 0.0:
        return 0.0
    return 0.5 * step_ratio(previous, source, target)


def step_ratio(previous: NoiseLevel, source: NoiseLevel, target: NoiseLevel) -> float:
    """The coming step over the last one, in log(alpha / sigma); 0 after a level of pure noise."""
    return (_log_snr(target) - _log_snr(source)) / (_log_snr(source) - _log_snr(previous))


def _log_snr(level: NoiseLevel) -> float:
    return math.log(level.alpha / level.sigma) if level.alpha > 0.0 else -math.inf
