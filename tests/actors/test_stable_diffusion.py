"""The Stable Diffusion backbone against diffusers' and transformers' own calls on the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn import functional

from actors.backbones.attention import install_attention
from actors.backbones.config import BackboneConfig
from actors.backbones.loading import load_backbone
from actors.backbones.stable_diffusion import StableDiffusionBackbone
from tests.actors.probabilities import ProbabilitiesOf

PROMPTS = ["a red fox", "owl"]
TIMESTEPS = torch.tensor([901.0, 120.0])
GUIDANCE = torch.tensor([1.0, 6.0])


@pytest.fixture
def latents(backbone: StableDiffusionBackbone) -> torch.Tensor:
    return torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))


def test_prompts_are_encoded_as_diffusers_does(
    backbone: StableDiffusionBackbone, pipeline: StableDiffusionPipeline
) -> None:
    conditioning = backbone.encode_prompts(PROMPTS)
    text, null = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    torch.testing.assert_close(conditioning.text_BLD, text)
    torch.testing.assert_close(conditioning.null_BLD, null)
    ids = pipeline.tokenizer(PROMPTS, padding="max_length", max_length=20, return_tensors="pt").input_ids
    torch.testing.assert_close(conditioning.pooled_BD, pipeline.text_encoder(ids).pooler_output)
    assert conditioning.token_mask_BL.sum(dim=1).tolist() == [7, 3]  # a token is a letter here
    assert not conditioning.token_mask_BL[:, 0].any()


def test_a_guidance_distilled_network_takes_the_scale_as_an_input(
    pipeline_folder: Path, tmp_path: Path
) -> None:
    """A Latent Consistency Model: asked once a row, against diffusers' own embedding of the scale."""
    components = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None).components
    torch.manual_seed(5)
    components["unet"] = unet = UNet2DConditionModel.from_config(
        components["unet"].config, time_cond_proj_dim=8
    )
    StableDiffusionPipeline(**components, requires_safety_checker=False).save_pretrained(tmp_path)
    distilled = load_backbone(BackboneConfig(str(tmp_path)))
    assert not distilled.classifier_free
    conditioning = distilled.encode_prompts(PROMPTS)
    assert conditioning.null_BLD is None
    latents = torch.randn(2, *distilled.latent_shape)
    denoised = distilled.denoise(latents, TIMESTEPS, conditioning, GUIDANCE)
    embed = StableDiffusionPipeline.get_guidance_scale_embedding
    with torch.inference_mode():
        for row in range(2):
            expected = unet.eval()(
                latents[row : row + 1],
                TIMESTEPS[row],
                encoder_hidden_states=conditioning.text_BLD[row : row + 1],
                timestep_cond=embed(None, GUIDANCE[row : row + 1] - 1, embedding_dim=8),
            ).sample[0]
            torch.testing.assert_close(denoised.prediction_BCHW[row], expected, atol=1e-5, rtol=1e-4)


def test_without_null_rows_the_network_is_asked_once_and_the_scale_does_not_count(
    backbone: StableDiffusionBackbone, latents: torch.Tensor
) -> None:
    conditioning = replace(backbone.encode_prompts(PROMPTS), null_BLD=None)
    alone = backbone.denoise(latents, TIMESTEPS, conditioning, GUIDANCE).prediction_BCHW
    at_one = backbone.denoise(latents, TIMESTEPS, backbone.encode_prompts(PROMPTS), torch.ones(2))
    torch.testing.assert_close(alone, at_one.prediction_BCHW, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("attention", [False, True])
def test_guidance_features_and_attention(
    attention: bool,
    backbone: StableDiffusionBackbone,
    pipeline: StableDiffusionPipeline,
    latents: torch.Tensor,
) -> None:
    """Rows at different timesteps and guidance scales, against one unguided diffusers call each."""
    unet: UNet2DConditionModel = pipeline.unet
    conditioning = backbone.encode_prompts(PROMPTS)
    denoised = backbone.denoise(latents, TIMESTEPS, conditioning, GUIDANCE, attention=attention)
    text, null = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    keeping = ProbabilitiesOf()
    unet.set_attn_processor(keeping)
    mid: list[torch.Tensor] = []
    hook = unet.mid_block.register_forward_hook(lambda module, inputs, output: mid.append(output))
    with torch.inference_mode():
        for row in range(2):
            one, timestep = latents[row : row + 1], TIMESTEPS[row]
            without = unet(one, timestep, encoder_hidden_states=null[row : row + 1]).sample
            mid.clear()
            keeping.kept.clear()
            having = unet(one, timestep, encoder_hidden_states=text[row : row + 1]).sample
            expected = (without + GUIDANCE[row] * (having - without))[0]
            torch.testing.assert_close(denoised.prediction_BCHW[row], expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(denoised.features_BF[row], mid[0].mean((2, 3))[0], atol=1e-5, rtol=0)
            if attention:  # every cross-attention of this UNet is 4 x 4
                maps = torch.stack([kept[0].mean(0) for kept in keeping.kept]).mean(0).T.reshape(20, 4, 4)
                maps[~conditioning.token_mask_BL[row]] = 0.0
                assert denoised.attention_BLHW is not None
                torch.testing.assert_close(denoised.attention_BLHW[row], maps, atol=1e-6, rtol=0)
    hook.remove()
    unet.set_attn_processor(AttnProcessor2_0())
    assert (denoised.attention_BLHW is None) is not attention


@pytest.mark.parametrize(("sample_size", "side"), [(8, 8), (32, 16), (10, 10)])
def test_attention_is_recorded_at_one_resolution(sample_size: int, side: int) -> None:
    """Of the layers at 1, 1/2 and 1/4 of the latents' size: the finest of at most 16 x 16."""
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        block_out_channels=(4, 4, 4),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=1,
        norm_num_groups=2,
    )
    recorder = install_attention(unet, (sample_size, sample_size))
    assert recorder is not None
    with torch.inference_mode(), recorder.recording(True):
        unet(torch.randn(1, 4, sample_size, sample_size), 10, encoder_hidden_states=torch.randn(1, 3, 8))
    maps = recorder.maps()
    assert maps.shape == (1, 3, side, side)
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(1, side, side))


def test_decoding_equals_the_pipeline(
    backbone: StableDiffusionBackbone, pipeline: StableDiffusionPipeline, latents: torch.Tensor
) -> None:
    with torch.inference_mode():
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    expected = pipeline.image_processor.postprocess(decoded, output_type="np")
    images = backbone.decode(latents)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, (expected * 255).round().astype(np.uint8))
    np.testing.assert_array_equal(backbone.preview(latents), images)  # small enough to be its own preview


def test_previews_of_large_images_are_small(backbone: StableDiffusionBackbone) -> None:
    wide = functional.interpolate(torch.randn(1, 4, 2, 4), scale_factor=32)
    assert backbone.decode(wide).shape == (1, 256, 512, 3)
    assert backbone.preview(wide).shape == (1, 112, 224, 3)
