"""The Flux backbone, schnell and dev, against diffusers' own pipeline and network on the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from actors.backbones.flux import FluxBackbone, pack, unpack
from actors.engine import EngineConfig
from tests.actors.conftest import FLUX_HEIGHT, FLUX_WIDTH
from tests.actors.probabilities import JointProbabilitiesOf
from tests.actors.trajectories import first_noises, run_to_the_end

PROMPTS = ["a red fox", "owl"]
TIMESTEPS = torch.tensor([900.0, 120.0])
GUIDANCE = torch.tensor([1.0, 6.0])


@pytest.fixture
def latents(flux: FluxBackbone) -> torch.Tensor:
    return torch.randn(2, *flux.latent_shape, generator=torch.Generator().manual_seed(0))


def prompt_length(pipeline: FluxPipeline) -> int:
    return 512 if pipeline.transformer.config.guidance_embeds else 256


def test_packing_is_the_pipelines() -> None:
    latents = torch.randn(2, 3, 4, 6)
    tokens = FluxPipeline._pack_latents(latents, 2, 3, 4, 6)
    assert torch.equal(pack(latents), tokens)
    assert torch.equal(unpack(tokens, (4, 6)), latents)


def test_prompts_are_encoded_as_diffusers_does(flux: FluxBackbone, flux_pipeline: FluxPipeline) -> None:
    conditioning = flux.encode_prompts(PROMPTS)
    with torch.inference_mode():
        text, pooled, _ = flux_pipeline.encode_prompt(
            PROMPTS, device="cpu", max_sequence_length=prompt_length(flux_pipeline)
        )
    torch.testing.assert_close(conditioning.text_BLD, text)
    torch.testing.assert_close(conditioning.pooled_BD, pooled)
    assert conditioning.null_BLD is None
    assert flux.text_dim == pooled.shape[1]
    assert conditioning.token_mask_BL.sum(dim=1).tolist() == [3, 1]  # a token is a word here


@pytest.mark.parametrize("attention", [False, True])
def test_prediction_features_and_attention(
    attention: bool, flux: FluxBackbone, flux_pipeline: FluxPipeline, latents: torch.Tensor
) -> None:
    """Rows at different timesteps and guidance scales, against one diffusers call each."""
    transformer = flux_pipeline.transformer
    conditioning = flux.encode_prompts(PROMPTS)
    denoised = flux.denoise(latents, TIMESTEPS, conditioning, GUIDANCE, attention=attention)
    _, channels, height, width = latents.shape
    ids = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)
    keeping = JointProbabilitiesOf()
    transformer.set_attn_processor(keeping)
    left: list[torch.Tensor] = []
    hook = transformer.transformer_blocks[-1].register_forward_hook(
        lambda module, inputs, output: left.append(output[1])
    )
    with torch.inference_mode():
        for row in range(2):
            keeping.kept.clear()
            left.clear()
            tokens = transformer(
                hidden_states=FluxPipeline._pack_latents(latents[row : row + 1], 1, channels, height, width),
                timestep=TIMESTEPS[row : row + 1] / 1000,
                guidance=GUIDANCE[row : row + 1] if transformer.config.guidance_embeds else None,
                pooled_projections=conditioning.pooled_BD[row : row + 1],
                encoder_hidden_states=conditioning.text_BLD[row : row + 1],
                txt_ids=torch.zeros(conditioning.text_BLD.shape[1], 3),
                img_ids=ids,
            ).sample
            expected = FluxPipeline._unpack_latents(tokens, height * 2, width * 2, 2)[0]
            torch.testing.assert_close(denoised.prediction_BCHW[row], expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(denoised.features_BF[row], left[0][0].mean(0), atol=1e-5, rtol=1e-4)
            if attention:
                words = conditioning.text_BLD.shape[1]
                image_to_text = torch.stack([kept[0, :, words:, :words].mean(0) for kept in keeping.kept])
                assert len(image_to_text) == 2
                maps = image_to_text.mean(0).T.reshape(words, height // 2, width // 2)
                maps[~conditioning.token_mask_BL[row]] = 0.0
                assert denoised.attention_BLHW is not None
                torch.testing.assert_close(denoised.attention_BLHW[row], maps, atol=1e-6, rtol=1e-4)
                assert maps.std() > 0
    hook.remove()
    assert (denoised.attention_BLHW is None) is not attention


def test_recording_changes_no_bit(flux: FluxBackbone, latents: torch.Tensor) -> None:
    conditioning = flux.encode_prompts(PROMPTS)
    plain = flux.denoise(latents, TIMESTEPS, conditioning, GUIDANCE)
    recorded = flux.denoise(latents, TIMESTEPS, conditioning, GUIDANCE, attention=True)
    assert torch.equal(plain.prediction_BCHW, recorded.prediction_BCHW)
    assert torch.equal(plain.features_BF, recorded.features_BF)


def test_always_continue_equals_the_diffusers_pipeline(
    flux: FluxBackbone, flux_pipeline: FluxPipeline
) -> None:
    """With the schedule that the pipeline's own scheduler makes, shifted by resolution for dev."""
    config = EngineConfig(solver="flow_euler", num_steps=5, warmup_steps=1, guidance_scale=3.5)
    ours = run_to_the_end(flux, config, PROMPTS)
    options: dict[str, Any] = {
        "num_inference_steps": 5,
        "guidance_scale": 3.5,
        "max_sequence_length": prompt_length(flux_pipeline),
        "output_type": "latent",
        "height": FLUX_HEIGHT,
        "width": FLUX_WIDTH,
    }
    tokens = flux_pipeline(PROMPTS, latents=pack(first_noises(flux, 2)), **options).images
    torch.testing.assert_close(ours, unpack(tokens, ours.shape[2:]), atol=1e-4, rtol=0)


def test_a_configured_shift_goes_before_the_schedulers(flux: FluxBackbone) -> None:
    def final(shift: float | None) -> torch.Tensor:
        config = EngineConfig(solver="flow_euler", num_steps=3, warmup_steps=1, flow_shift=shift)
        return run_to_the_end(flux, config, PROMPTS[:1])

    assert torch.equal(final(None), final(flux.flow_shift))
    assert not torch.allclose(final(None), final(2 * flux.flow_shift), atol=1e-3)


def test_decoding_equals_the_pipeline(
    flux: FluxBackbone, flux_pipeline: FluxPipeline, latents: torch.Tensor
) -> None:
    config = flux_pipeline.vae.config
    with torch.inference_mode():
        decoded = flux_pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    expected = flux_pipeline.image_processor.postprocess(decoded, output_type="np")
    images = flux.decode(latents)
    np.testing.assert_allclose(images / 255.0, expected, atol=0.5 / 255 + 1e-5)
    np.testing.assert_array_equal(flux.preview(latents), images)  # small enough to be its own preview
