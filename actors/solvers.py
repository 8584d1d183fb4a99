"""Solvers: one update for DDIM, DPM-Solver++(2M) and flow-matching Euler, over per-sample times.

Always true here: pure functions; every sample of a batch has its own source, target and history; each
solver equals diffusers' scheduler of that name. The three are one formula: with the clean prediction x0,

    x_t = (sigma_t / sigma_s) * x_s + (alpha_t - alpha_s * sigma_t / sigma_s) * x0

is DDIM (Song et al. 2020, eta = 0), first-order DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095) and, with
alpha = 1 - sigma, the Euler step of flow matching. The second-order multistep solver puts
`x0 + (h / 2 h_0) * (x0 - previous x0)` in the place of x0, where h and h_0 are the coming and the last
step in log(alpha / sigma).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from actors.contracts import PredictionType
from actors.schedule import NoiseLevel


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
) -> torch.Tensor:
    """Take each sample from its source level to its target level.

    previous_clean_BCHW and previous are the multistep solver's history; a sample whose entry in
    `previous` is None takes a first-order step and its row of previous_clean_BCHW does not matter.
    """
    history = previous if previous is not None else [None] * len(sources)
    rows = [
        (
            target.sigma / source.sigma,
            target.alpha - source.alpha * target.sigma / source.sigma,
            extrapolation(last, source, target),
        )
        for source, target, last in zip(sources, targets, history, strict=True)
    ]
    keep, pull, forward = per_sample(rows, latents_BCHW)
    if previous_clean_BCHW is not None:
        clean_BCHW = clean_BCHW + forward * (clean_BCHW - previous_clean_BCHW)
    return keep * latents_BCHW + pull * clean_BCHW


def extrapolation(previous: NoiseLevel | None, source: NoiseLevel, target: NoiseLevel) -> float:
    """How far DPM-Solver++(2M) extrapolates the clean prediction: h / (2 h_0).

    0 without history, and for the step to the clean end (diffusers' `lower_order_final`).
    """
    if previous is None or target.sigma == 0.0:
        return 0.0
    step = _log_snr(target) - _log_snr(source)
    last_step = _log_snr(source) - _log_snr(previous)
    return 0.5 * step / last_step


def _log_snr(level: NoiseLevel) -> float:
    return math.log(level.alpha / level.sigma) if level.alpha > 0.0 else -math.inf
