"""The Stable Diffusion backbone against diffusers' and transformers' own calls on the same weights."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch.nn import functional

from actors.backbones import StableDiffusionBackbone, load_backbone
from actors.backbones.attention import install_attention
from actors.errors import UserError

PROMPTS = ["a red fox", "owl"]
TIMESTEPS = torch.tensor([901.0, 120.0])
GUIDANCE = torch.tensor([1.0, 6.0])


@pytest.fixture
def latents(backbone: StableDiffusionBackbone) -> torch.Tensor:
    return torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))


class ProbabilitiesOf(AttnProcessor):
    """diffusers' plain processor, keeping every cross-attention's probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if encoder_hidden_states is not None:
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            probabilities = (query @ key.transpose(1, 2) * attn.scale).softmax(-1)
            self.kept.append(probabilities.unflatten(0, (-1, attn.heads)))
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)


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


def test_a_prompt_is_encoded_once(pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = load_backbone(str(pipeline_folder))
    encoded: list[str] = []
    encode = fresh._encode

    def counted(prompts: list[str]) -> object:
        encoded.extend(prompts)
        return encode(prompts)

    monkeypatch.setattr(fresh, "_encode", counted)
    first = fresh.encode_prompts(["owl", "fox", "owl"])
    again = fresh.encode_prompts(["fox"])
    assert encoded == ["owl", "fox", ""]
    assert torch.equal(first.text_BLD[1], again.text_BLD[0])
    assert torch.equal(first.text_BLD[0], first.text_BLD[2])


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


@pytest.mark.parametrize(("sample_size", "side"), [(8, 8), (32, 16)])
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


def test_autoencoder_kl_decodes_too(pipeline_folder: Path, tmp_path: Path) -> None:
    components = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None).components
    components["vae"] = vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    StableDiffusionPipeline(**components, requires_safety_checker=False).save_pretrained(tmp_path)
    latents = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        decoded = vae.eval().decode(latents / vae.config.scaling_factor).sample
    expected = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    images = load_backbone(str(tmp_path)).decode(latents)
    np.testing.assert_allclose(images / 255.0, expected, atol=0.5 / 255 + 1e-6)


def test_identity_follows_the_weights(pipeline_folder: Path, tmp_path: Path) -> None:
    same = load_backbone(str(copytree(pipeline_folder, tmp_path / "a" / pipeline_folder.name)))
    other_folder = copytree(pipeline_folder, tmp_path / "b" / pipeline_folder.name)
    weights = other_folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(bytes(content))
    identity = load_backbone(str(pipeline_folder)).identity
    assert same.identity == identity
    assert load_backbone(str(other_folder)).identity != identity


def test_what_cannot_be_loaded_is_one_line(pipeline_folder: Path, tmp_path: Path) -> None:
    damaged = copytree(pipeline_folder, tmp_path / "damaged")
    (damaged / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    lacking = copytree(pipeline_folder, tmp_path / "lacking")
    config = lacking / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    empty = tmp_path / "empty"
    empty.mkdir()
    for source in (damaged, empty, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"backbone is .* cannot be loaded .*; accepted: shapes") as error:
            load_backbone(str(source))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"text encoder lacks text_model.encoder.layers.2"):
        load_backbone(str(lacking))
    with pytest.raises(UserError, match=r"backbone.dtype is 'int8'; accepted: float32, bfloat16, float16"):
        load_backbone(str(pipeline_folder), dtype="int8")
