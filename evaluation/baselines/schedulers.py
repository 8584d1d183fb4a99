"""Solvers that the engine has not: diffusers' own schedulers, in a plain batched loop over a backbone.

Always true here: the model's noise schedule is kept, every other option is the scheduler's default, so that a
method is what its users get; the noise is that of the engine for the same seed; every call is counted, also
those that a scheduler makes beyond its steps (PNDM's first).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from actors.contracts import Backbone, EpisodeRequest, EpisodeResult, Images
from actors.engine import EngineConfig
from actors.errors import UserError

_MAKERS: dict[str, Callable[..., Any]] = {
    "dpm": lambda **model: DPMSolverMultistepScheduler(
        **model, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
    ),
    "unipc": UniPCMultistepScheduler,
    "pndm": lambda **model: PNDMScheduler(**model, skip_prk_steps=True, steps_offset=1),
    "deis": DEISMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}


def make_scheduler(family: str, backbone: Backbone) -> Any:
    """diffusers' scheduler of that family for the backbone's noise schedule and kind of prediction."""
    signal_T = backbone.alphas_cumprod.double().cpu().numpy()
    before_T = np.concatenate([[1.0], signal_T[:-1]])
    return _MAKERS[family](
        num_train_timesteps=len(signal_T),
        trained_betas=(1.0 - signal_T / before_T).tolist(),
        prediction_type=backbone.prediction_type,
    )


class SchedulerSampler:
    """`slots` images at a time, all at the same step."""

    def __init__(self, family: str, num_steps: int, config: EngineConfig, backbone: Backbone) -> None:
        if config.guidance_rule == "cfg++":
            raise UserError(
                f"baseline '{family}-{num_steps}': accepted with engine.guidance_rule cfg or none"
            )
        self._backbone = backbone
        self._config = config
        self._num_steps = num_steps
        self._family = family

    @torch.inference_mode()
    def run(
        self, requests: Sequence[EpisodeRequest], *, slots: int, record_previews: bool = False
    ) -> list[EpisodeResult]:
        """Finished episodes in the order of the requests; there are no decisions in them."""
        return [
            result
            for start in range(0, len(requests), slots)
            for result in self._batch(requests[start : start + slots], record_previews)
        ]

    def _batch(self, requests: Sequence[EpisodeRequest], record_previews: bool) -> list[EpisodeResult]:
        backbone, config = self._backbone, self._config
        conditioning = backbone.encode_prompts([request.prompt for request in requests])
        if config.guidance_rule == "none":
            conditioning = replace(conditioning, null_BLD=None)
        scheduler = make_scheduler(self._family, backbone)
        scheduler.set_timesteps(self._num_steps, device=backbone.device)
        latents_BCHW = initial_noise(backbone, requests) * scheduler.init_noise_sigma
        scale_B = torch.full((len(requests),), config.guidance_scale, device=backbone.device)
        calls, previews = 0, list[Images]()
        for timestep in scheduler.timesteps:
            scaled_BCHW = scheduler.scale_model_input(latents_BCHW, timestep)
            timesteps_B = timestep.to(backbone.device).expand(len(requests)).float()
            denoised = backbone.denoise(scaled_BCHW, timesteps_B, conditioning, scale_B)
            calls += 1
            stepped = scheduler.step(denoised.prediction_BCHW, timestep, latents_BCHW)
            latents_BCHW = stepped.prev_sample
            if record_previews:
                previews.append(backbone.preview(latents_BCHW))
        if not latents_BCHW.isfinite().all():
            raise FloatingPointError(f"{self._family}-{self._num_steps} gave a value that is not finite")
        return [
            EpisodeResult(
                request=request,
                latents_CHW=latents_BCHW[row].float().clone(),
                nfe=calls,
                network_evals=calls * (1 if conditioning.null_BLD is None else 2),
                looks=0,
                attempts=1,
                cost=float(calls),
                decisions=(),
                preview_images=tuple(images[row] for images in previews),
            )
            for row, request in enumerate(requests)
        ]


def initial_noise(backbone: Backbone, requests: Sequence[EpisodeRequest]) -> torch.Tensor:
    """[B, C, H, W]: what the engine begins the same requests with."""
    shape = backbone.latent_shape
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(one.seed)) for one in requests]
    return torch.stack(noise).to(backbone.device)
