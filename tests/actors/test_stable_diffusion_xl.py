"""The SDXL backbone against diffusers' own pipeline and network on the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor2_0

from actors.backbones.config import BackboneConfig
from actors.backbones.loading import load_backbone
from actors.backbones.stable_diffusion_xl import StableDiffusionXLBackbone
from actors.conditioning import conditioning_row, stack_conditioning
from actors.engine import EngineConfig
from tests.actors.folders import save_stable_diffusion_xl
from tests.actors.probabilities import ProbabilitiesOf
from tests.actors.trajectories import first_noises, run_to_the_end

PROMPTS = ["a red fox", "owl"]
TIMESTEPS = torch.tensor([901.0, 120.0])
GUIDANCE = torch.tensor([1.0, 6.0])


@pytest.fixture
def latents(sdxl: StableDiffusionXLBackbone) -> torch.Tensor:
    return torch.randn(2, *sdxl.latent_shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("zeros", [True, False])
def test_prompts_are_encoded_as_diffusers_does(zeros: bool, tmp_path: Path) -> None:
    save_stable_diffusion_xl(tmp_path, force_zeros_for_empty_prompt=zeros)
    backbone = load_backbone(BackboneConfig(str(tmp_path)))
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    conditioning = backbone.encode_prompts(PROMPTS)
    with torch.inference_mode():
        text, null, pooled, null_pooled = pipeline.encode_prompt(PROMPTS, device="cpu")
    torch.testing.assert_close(conditioning.text_BLD, text)
    torch.testing.assert_close(conditioning.null_BLD, null)
    torch.testing.assert_close(conditioning.pooled_BD, pooled)
    torch.testing.assert_close(conditioning.extras["null_pooled"], null_pooled)
    assert bool(null_pooled.any()) is not zeros
    assert backbone.text_dim == pooled.shape[1]
    assert conditioning.token_mask_BL.sum(dim=1).tolist() == [7, 3]  # a token is a letter here


@pytest.mark.parametrize("attention", [False, True])
def test_guidance_features_and_attention(
    attention: bool,
    sdxl: StableDiffusionXLBackbone,
    sdxl_pipeline: StableDiffusionXLPipeline,
    latents: torch.Tensor,
) -> None:
    """Rows at different timesteps and guidance scales, against one unguided diffusers call each."""
    unet = sdxl_pipeline.unet
    rows = [conditioning_row(sdxl.encode_prompts(PROMPTS), row) for row in range(2)]
    conditioning = stack_conditioning(rows)
    denoised = sdxl.denoise(latents, TIMESTEPS, conditioning, GUIDANCE, attention=attention)
    text, null, pooled, null_pooled = sdxl_pipeline.encode_prompt(PROMPTS, device="cpu")
    times = torch.tensor([[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]])  # 8 latents of 4 pixels
    keeping = ProbabilitiesOf()
    unet.set_attn_processor(keeping)
    mid: list[torch.Tensor] = []
    hook = unet.mid_block.register_forward_hook(lambda module, inputs, output: mid.append(output))
    with torch.inference_mode():
        for row in range(2):
            one, timestep, of = latents[row : row + 1], TIMESTEPS[row], slice(row, row + 1)
            added = {"text_embeds": null_pooled[of], "time_ids": times}
            without = unet(one, timestep, encoder_hidden_states=null[of], added_cond_kwargs=added).sample
            mid.clear()
            keeping.kept.clear()
            added = {"text_embeds": pooled[of], "time_ids": times}
            having = unet(one, timestep, encoder_hidden_states=text[of], added_cond_kwargs=added).sample
            expected = (without + GUIDANCE[row] * (having - without))[0]
            torch.testing.assert_close(denoised.prediction_BCHW[row], expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(denoised.features_BF[row], mid[0].mean((2, 3))[0], atol=1e-5, rtol=0)
            assert denoised.null_prediction_BCHW is not None
            torch.testing.assert_close(denoised.null_prediction_BCHW[row], without[0], atol=1e-5, rtol=1e-4)
            if attention:  # every cross-attention of this UNet is 4 x 4
                maps = torch.stack([kept[0].mean(0) for kept in keeping.kept]).mean(0).T.reshape(20, 4, 4)
                maps[~conditioning.token_mask_BL[row]] = 0.0
                assert denoised.attention_BLHW is not None
                torch.testing.assert_close(denoised.attention_BLHW[row], maps, atol=1e-6, rtol=0)
    hook.remove()
    unet.set_attn_processor(AttnProcessor2_0())
    assert (denoised.attention_BLHW is None) is not attention


def test_without_null_rows_the_network_is_asked_once(
    sdxl: StableDiffusionXLBackbone, sdxl_pipeline: StableDiffusionXLPipeline, latents: torch.Tensor
) -> None:
    """As SDXL-Turbo is run: what diffusers does at guidance 0."""
    conditioning = replace(sdxl.encode_prompts(PROMPTS), null_BLD=None)
    alone = sdxl.denoise(latents, TIMESTEPS, conditioning, GUIDANCE)
    guided = sdxl.denoise(latents, TIMESTEPS, sdxl.encode_prompts(PROMPTS), torch.ones(2))
    torch.testing.assert_close(alone.prediction_BCHW, guided.prediction_BCHW, atol=1e-5, rtol=1e-4)
    assert alone.null_prediction_BCHW is None


@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
@pytest.mark.parametrize("size", [(None, None), (40, 24)])
def test_always_continue_equals_the_diffusers_pipeline(
    solver: str,
    size: tuple[int | None, int | None],
    sdxl_folder: Path,
    sdxl_pipeline: StableDiffusionXLPipeline,
) -> None:
    height, width = size
    backbone = load_backbone(BackboneConfig(str(sdxl_folder), height=height, width=width))
    config = EngineConfig(solver=solver, num_steps=6, guidance_scale=3.5)  # type: ignore[arg-type]
    ours = run_to_the_end(backbone, config, PROMPTS)
    reference = StableDiffusionXLPipeline(**sdxl_pipeline.components, add_watermarker=False)
    reference.set_progress_bar_config(disable=True)
    if solver == "dpmpp":
        reference.scheduler = DPMSolverMultistepScheduler.from_config(
            dict(sdxl_pipeline.scheduler.config), timestep_spacing="linspace", final_sigmas_type="zero"
        )
    expected = reference(
        list(PROMPTS),
        height=height,
        width=width,
        num_inference_steps=6,
        guidance_scale=3.5,
        latents=first_noises(backbone, len(PROMPTS)),
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_decoding_equals_the_pipeline(
    sdxl: StableDiffusionXLBackbone, sdxl_pipeline: StableDiffusionXLPipeline, latents: torch.Tensor
) -> None:
    with torch.inference_mode():
        decoded = sdxl_pipeline.vae.decode(latents / sdxl_pipeline.vae.config.scaling_factor).sample
    expected = sdxl_pipeline.image_processor.postprocess(decoded, output_type="np")
    images = sdxl.decode(latents)
    np.testing.assert_array_equal(images, (expected * 255).round().astype(np.uint8))
    np.testing.assert_array_equal(sdxl.preview(latents), images)  # small enough to be its own preview
