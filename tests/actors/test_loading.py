"""Loading: which options make which backbone, what identifies it, and what is said when it cannot be."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from actors.backbones.config import BackboneConfig
from actors.backbones.flux import FluxBackbone
from actors.backbones.stable_diffusion import StableDiffusionBackbone
from actors.backbones.stable_diffusion_xl import StableDiffusionXLBackbone
from actors.errors import UserError
from tests.actors.loaded import WEIGHTS, load, network_of, refused


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_the_architecture_is_found_out(
    pipeline_folder: Path, sdxl_folder: Path, flux_dev_folder: Path
) -> None:
    assert isinstance(load(pipeline_folder), StableDiffusionBackbone)
    assert isinstance(load(sdxl_folder), StableDiffusionXLBackbone)
    assert isinstance(load(flux_dev_folder), FluxBackbone)


def test_the_weights_type_is_the_one_asked_for(folder: Path) -> None:
    backbone = load(folder, dtype="bfloat16", height=32, width=32)
    conditioning = backbone.encode_prompts(["owl"])
    assert conditioning.text_BLD.dtype == torch.bfloat16
    latents = torch.randn(1, *backbone.latent_shape)
    denoised = backbone.denoise(latents, torch.tensor([500.0]), conditioning, torch.ones(1))
    assert denoised.prediction_BCHW.dtype == denoised.features_BF.dtype == torch.float32
    assert denoised.features_BF.shape == (1, backbone.feature_dim)
    assert denoised.prediction_BCHW.isfinite().all()
    assert backbone.decode(latents).shape == (1, 32, 32, 3)


def test_identity_follows_the_weights_and_what_else_changes_images(folder: Path, tmp_path: Path) -> None:
    same = copytree(folder, tmp_path / "a" / folder.name)
    other = copytree(folder, tmp_path / "b" / folder.name)
    weights = other / network_of(folder) / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(bytes(content))
    identity = load(folder).identity
    assert load(same, dtype="bfloat16").identity == identity
    assert len({identity, load(other).identity, load(folder, height=64).identity}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "backbone.dtype is 'int8'; accepted: float32, bfloat16, float16"),
        ({"cache": "all"}, "backbone.cache is 'all'; accepted: first_block, taylorseer, null"),
        ({"height": 0}, "backbone.height is 0; accepted: a number of pixels, or null"),
    ],
)
def test_a_value_that_no_backbone_takes_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        BackboneConfig(**options)
    assert str(error.value) == message


def test_what_is_missing_or_damaged_is_one_line(folder: Path, tmp_path: Path) -> None:
    damaged = copytree(folder, tmp_path / "damaged")
    (damaged / network_of(folder) / WEIGHTS).write_bytes(b"not weights")
    gone = copytree(folder, tmp_path / "gone")
    (gone / "vae" / WEIGHTS).unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    for source in (damaged, gone, empty, tmp_path / "nowhere"):
        message = refused(source)
        assert message.startswith(f"backbone is {str(source)!r} and cannot be loaded (")
        assert "; accepted: shapes, " in message


def test_a_weight_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    """The libraries would go on with random numbers in its place."""
    for part in (network_of(folder), "vae", *(path.name for path in folder.glob("text_encoder*"))):
        lacking = copytree(folder, tmp_path / part)
        (file,) = (lacking / part).glob("*.safetensors")
        tensors = load_file(file)
        name = sorted(tensors)[len(tensors) // 2]
        del tensors[name]
        save_file(tensors, file, metadata={"format": "pt"})
        message = refused(lacking)
        assert f"its {part.replace('_', ' ')} lacks {name}; accepted: all weights" in message


def test_another_architecture_is_named(folder: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    other = copytree(folder, tmp_path / "other")
    edit(other / "model_index.json", _class_name="StableDiffusion3Pipeline")
    assert "a StableDiffusion3Pipeline; accepted: StableDiffusionPipeline, " in refused(other)
    edit(other / "model_index.json", _class_name=None)
    assert "a None; accepted: StableDiffusionPipeline, " in refused(other)
    mixed = copytree(folder, tmp_path / "mixed")
    edit(mixed / "model_index.json", text_encoder=["transformers", "BertModel"])
    assert "its text_encoder is a BertModel; accepted: CLIPTextModel" in refused(mixed)
    posing = copytree(sdxl_folder, tmp_path / "posing")
    edit(posing / "model_index.json", _class_name="StableDiffusionPipeline")
    assert "has a UNet with cross_attention_dim 48; accepted: 32" in refused(posing)


def test_an_inpainting_network_is_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    components = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None).components
    unet = components["unet"]
    components["unet"] = type(unet).from_config(unet.config, in_channels=9)
    StableDiffusionPipeline(**components, requires_safety_checker=False).save_pretrained(tmp_path)
    assert "has a UNet with in_channels 9; accepted: 4" in refused(tmp_path)


def test_a_schedule_that_the_solvers_cannot_follow_is_refused(
    pipeline_folder: Path, flux_dev_folder: Path, tmp_path: Path
) -> None:
    edm = copytree(pipeline_folder, tmp_path / "edm")
    edit(edm / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])
    assert "has a EDMEulerScheduler; accepted: a scheduler with alphas_cumprod" in refused(edm)
    sample = copytree(pipeline_folder, tmp_path / "sample")
    edit(sample / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert "predicts 'sample'; accepted: epsilon, v_prediction" in refused(sample)
    karras = copytree(flux_dev_folder, tmp_path / "karras")
    edit(karras / "scheduler" / "scheduler_config.json", use_karras_sigmas=True)
    assert "a scheduler with use_karras_sigmas; accepted: one without" in refused(karras)


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
    np.testing.assert_allclose(load(tmp_path).decode(latents) / 255.0, expected, atol=0.5 / 255 + 1e-6)


def test_a_prompt_is_encoded_once_and_new_ones_as_one_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every architecture has a CLIP text encoder; it is counted what that one is given."""
    fresh = load(folder)
    batches: list[int] = []
    forward = CLIPTextModel.forward

    def counted(model: CLIPTextModel, input_ids: torch.Tensor, **options: Any) -> Any:
        batches.append(len(input_ids))
        return forward(model, input_ids, **options)

    monkeypatch.setattr(CLIPTextModel, "forward", counted)
    first = fresh.encode_prompts(["owl", "fox", "owl"])
    again = fresh.encode_prompts(["fox"])
    guided_by_the_empty_prompt = isinstance(fresh, StableDiffusionBackbone)
    assert batches == [3 if guided_by_the_empty_prompt else 2]
    assert torch.equal(first.text_BLD[1], again.text_BLD[0])
    assert torch.equal(first.pooled_BD[0], first.pooled_BD[2])


def test_a_prompt_that_is_cut_off_is_warned_of_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = load(folder)
    limit = backbone.encode_prompts(["owl"]).text_BLD.shape[1]
    words_kept = limit - (1 if isinstance(backbone, FluxBackbone) else 2)  # T5 adds an end, CLIP a start too
    fits, too_long = " ".join("a" * words_kept), "b " + " ".join("a" * (words_kept + 6))
    with caplog.at_level(logging.WARNING):
        conditioning = backbone.encode_prompts([fits, too_long])
        backbone.encode_prompts([too_long])
    (record,) = caplog.records
    assert too_long[:20] in record.getMessage()
    assert f"last 7 of {limit + 7} tokens" in record.getMessage()
    assert conditioning.token_mask_BL.sum(dim=1).tolist() == [words_kept, words_kept]
