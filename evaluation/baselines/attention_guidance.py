"""SAG and Attend-and-Excite: diffusers' own pipelines around the backbone's networks.

Always true here: one NFE is as much network as one guided call of the engine, rounded up: what the
pipelines evaluate is counted at the UNet, row by row, and a backward pass as two more rows. The networks
are left as they were.

SAG: Hong et al. 2022, arXiv 2210.00939. Attend-and-Excite: Chefer et al. 2023, arXiv 2301.13826; its token
indices are the prompt's content words, which the paper's users name by hand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionAttendAndExcitePipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
)

from actors.backbones.attention import RecordingProcessor
from actors.contracts import EpisodeRequest, EpisodeResult
from actors.engine import EngineConfig
from actors.errors import UserError
from evaluation.baselines.names import Baseline
from evaluation.baselines.schedulers import initial_noise
from evaluation.bench import Bench

ATTENTION_GUIDANCE = ("sag", "attend-excite")
BACKWARD = 2
"""A backward pass of one row, in rows of a forward pass."""
SAG_SCALE = 0.75
"""The paper's, and the pipeline's default."""
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the and or of on in at to with without by for from is are it its this that as into over under",
    )
)


class PipelineSampler:
    """One of the two pipelines; Attend-and-Excite takes one image at a time."""

    def __init__(self, baseline: Baseline, config: EngineConfig, bench: Bench) -> None:
        pipeline = bench.pipeline
        if not isinstance(pipeline, StableDiffusionPipeline) or not bench.backbone.classifier_free:
            raise UserError(
                f"baseline {baseline.name!r}: accepted on a StableDiffusionPipeline with guidance"
            )
        if config.guidance_rule != "cfg" or config.guidance_scale <= 1.0:
            raise UserError(
                f"baseline {baseline.name!r}: accepted with engine.guidance_rule=cfg"
                " and engine.guidance_scale above 1"
            )
        parts = {
            name: getattr(pipeline, name)
            for name in ("vae", "text_encoder", "tokenizer", "unet", "feature_extractor")
        }
        options = dict(pipeline.scheduler.config)
        scheduler = DDIMScheduler.from_config(options, set_alpha_to_one=True, steps_offset=1)
        kind = (
            StableDiffusionSAGPipeline if baseline.family == "sag" else StableDiffusionAttendAndExcitePipeline
        )
        self._pipeline: Any = kind(
            **parts, scheduler=scheduler, safety_checker=None, requires_safety_checker=False
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self._family = baseline.family
        self._steps = baseline.num_steps
        self._scale = config.guidance_scale
        self._backbone = bench.backbone

    def run(
        self, requests: Sequence[EpisodeRequest], *, slots: int, record_previews: bool = False
    ) -> list[EpisodeResult]:
        """Finished episodes in the order of the requests; there are no decisions in them."""
        size = 1 if self._family == "attend-excite" else slots
        return [
            result
            for start in range(0, len(requests), size)
            for result in self._batch(requests[start : start + size])
        ]

    def _batch(self, requests: Sequence[EpisodeRequest]) -> list[EpisodeResult]:
        prompts = [request.prompt for request in requests]
        _, height, width = self._backbone.latent_shape
        factor = self._pipeline.vae_scale_factor
        unet = self._pipeline.unet
        with _counted(self._pipeline) as rows, _restored(unet):
            latents_BCHW = self._pipeline(
                prompt=prompts,
                height=height * factor,
                width=width * factor,
                num_inference_steps=self._steps,
                guidance_scale=self._scale,
                latents=initial_noise(self._backbone, requests).to(unet.dtype),
                output_type="latent",
                **(
                    self._excitement(prompts) if self._family == "attend-excite" else {"sag_scale": SAG_SCALE}
                ),
            ).images
        if not torch.as_tensor(latents_BCHW).isfinite().all():
            raise FloatingPointError(
                f"{self._family}-{self._steps} gave a value that is not finite: {prompts}"
            )
        network_evals = sum(rows) // len(requests)
        nfe = math.ceil(network_evals / 2)
        return [
            EpisodeResult(
                request=request,
                latents_CHW=latents_CHW.detach().float().clone(),
                nfe=nfe,
                network_evals=network_evals,
                looks=0,
                attempts=1,
                cost=float(nfe),
                decisions=(),
            )
            for request, latents_CHW in zip(requests, latents_BCHW, strict=True)
        ]

    def _excitement(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The first half of the steps changes the latents, towards the paper's thresholds on its way."""
        steps = self._steps
        recorders = [
            processor.recorder
            for processor in self._pipeline.unet.attn_processors.values()
            if isinstance(processor, RecordingProcessor)
        ]
        assert recorders, "a Stable Diffusion UNet without cross-attention"
        return {
            "token_indices": [content_tokens(self._pipeline.tokenizer, prompt) for prompt in prompts],
            "max_iter_to_alter": steps // 2,
            "thresholds": {0: 0.05, steps // 5: 0.5, 2 * steps // 5: 0.8},
            "attn_res": recorders[0].size,
        }


def content_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """Where the prompt's words stand among its tokens; without function words, unless it has no others."""
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    special = set(tokenizer.all_special_ids)
    words = [
        (place, tokenizer.decode([token]).strip().lower())
        for place, token in enumerate(ids)
        if token not in special
    ]
    content = [place for place, word in words if word.isalpha() and word not in FUNCTION_WORDS]
    return content or [place for place, _ in words] or [1]


@contextmanager
def _counted(pipeline: Any) -> Iterator[list[int]]:
    """Rows that the UNet evaluates inside, with those that a backward pass is worth."""
    rows: list[int] = []

    def forward(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        rows.append(len(inputs[0]))

    update = getattr(pipeline, "_update_latent", None)

    def backward(*args: Any, **kwargs: Any) -> Any:
        rows.append(BACKWARD)
        return update(*args, **kwargs) if update else None

    handle = pipeline.unet.register_forward_hook(forward)
    if update is not None:
        pipeline._update_latent = backward
    try:
        yield rows
    finally:
        handle.remove()
        if update is not None:
            del pipeline._update_latent


@contextmanager
def _restored(unet: Any) -> Iterator[None]:
    """The attention processors that were there before, also where a pipeline breaks off."""
    processors = dict(unet.attn_processors)
    try:
        yield
    finally:
        unet.set_attn_processor(processors)
