"""What the options of a backbone change: resolution, preview decoder, LoRA, compilation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from safetensors.torch import load_file, save_file

from tests.actors.folders import tiny_vae
from tests.actors.loaded import WEIGHTS, load, network_of, refused


def test_a_resolution_is_in_pixels(folder: Path) -> None:
    backbone = load(folder, height=64, width=32)
    assert backbone.decode(torch.randn(1, *backbone.latent_shape)).shape == (1, 64, 32, 3)
    divisor = 4  # pixels of a latent here; Flux has 2 x 2 tokens of 2 pixels
    message = rf"backbone.width is 34; accepted: a multiple of {divisor} with this backbone"
    assert message in refused(folder, width=34)


def test_a_cache_is_for_flux(pipeline_folder: Path) -> None:
    message = refused(pipeline_folder, cache="first_block")
    assert message == "backbone.cache is 'first_block'; accepted with a StableDiffusionPipeline: null"


def test_a_device_that_is_not_here_is_one_line_that_names_the_option(pipeline_folder: Path) -> None:
    message = refused(pipeline_folder, device="xpu:7")
    assert message.startswith("backbone.device is 'xpu:7', which torch does not find here (")
    assert message.endswith("; accepted: a device of this machine, such as cpu")


def test_a_tiny_decoder_makes_previews_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    tiny = tiny_vae().eval()
    tiny.save_pretrained(tmp_path)
    own, with_tiny = (
        load(folder, height=32, width=32),
        load(folder, height=32, width=32, tiny_decoder=str(tmp_path)),
    )
    latents = torch.randn(2, *own.latent_shape)
    with torch.inference_mode():
        decoded = tiny.decode(latents / tiny.config.scaling_factor).sample
    expected = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(with_tiny.preview(latents) / 255.0, expected, atol=0.5 / 255 + 1e-5)
    np.testing.assert_array_equal(with_tiny.decode(latents), own.decode(latents))
    assert with_tiny.identity != own.identity


def test_a_tiny_decoder_that_does_not_fit_is_one_line(pipeline_folder: Path, tmp_path: Path) -> None:
    AutoencoderTiny.from_config(tiny_vae(latent_channels=16).config).save_pretrained(tmp_path / "wide")
    message = refused(pipeline_folder, tiny_decoder=str(tmp_path / "wide"))
    assert message.endswith("for 16 latent channels; accepted with this backbone: 4")
    empty = tmp_path / "empty"
    empty.mkdir()
    message = refused(pipeline_folder, tiny_decoder=str(empty))
    assert message.startswith(f"backbone.tiny_decoder is {str(empty)!r} and cannot be loaded (")
    tiny_vae().save_pretrained(tmp_path / "lacking")
    file = tmp_path / "lacking" / WEIGHTS
    tensors = load_file(file)
    name = max(tensors)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    assert f"lacks {name}; accepted: all weights" in refused(pipeline_folder, tiny_decoder=str(file.parent))


def test_a_compiled_denoiser_gives_the_same(pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, but not translated to C++, which takes minutes; features and attention come through."""
    own = load(pipeline_folder)
    compile_ = torch.compile
    calls: list[object] = []

    def traced(function: Any, **options: Any) -> Any:
        calls.append(function)
        return compile_(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", traced)
    compiled = load(pipeline_folder, compile=True)
    assert len(calls) == 1
    conditioning, latents = own.encode_prompts(["owl", "a fox"]), torch.randn(2, *own.latent_shape)
    timesteps, guidance = torch.tensor([900.0, 50.0]), torch.tensor([2.0, 4.0])
    ours, expected = (
        backbone.denoise(latents, timesteps, conditioning, guidance, attention=True)
        for backbone in (compiled, own)
    )
    torch.testing.assert_close(ours.prediction_BCHW, expected.prediction_BCHW, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.features_BF, expected.features_BF, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.attention_BLHW, expected.attention_BLHW, atol=1e-5, rtol=1e-4)


def save_lora(folder: Path, network: torch.nn.Module, part: str) -> None:
    """A LoRA of rank 2 on every query projection, in diffusers' format."""
    torch.manual_seed(4)
    tensors = {}
    for name, module in network.named_modules():
        if name.endswith("to_q"):
            assert isinstance(module, torch.nn.Linear)
            tensors[f"{part}.{name}.lora_A.weight"] = torch.randn(2, module.in_features)
            tensors[f"{part}.{name}.lora_B.weight"] = torch.randn(module.out_features, 2)
    save_file(tensors, folder / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})


def test_a_lora_is_fused_as_diffusers_does_it(folder: Path, tmp_path: Path) -> None:
    """Against the definition, W + B A, put into the network by hand."""
    part = network_of(folder)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    network = getattr(pipeline, part)
    save_lora(tmp_path, network, part)
    own, fused = load(folder, height=16, width=16), load(folder, height=16, width=16, lora=str(tmp_path))
    tensors = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    with torch.no_grad():
        for name, module in network.named_modules():
            if name.endswith("to_q"):
                up, down = (tensors[f"{part}.{name}.lora_{side}.weight"] for side in "BA")
                module.weight += up @ down
    by_hand = tmp_path / "by_hand"
    pipeline.save_pretrained(by_hand)
    expected = load(by_hand, height=16, width=16)
    conditioning, latents = own.encode_prompts(["owl"]), torch.randn(1, *own.latent_shape)
    predictions = [
        backbone.denoise(latents, torch.tensor([500.0]), conditioning, torch.ones(1)).prediction_BCHW
        for backbone in (fused, expected, own)
    ]
    torch.testing.assert_close(predictions[0], predictions[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(predictions[0], predictions[2], atol=1e-3)
    assert fused.identity.startswith(own.identity + "+lora:")
    file = load(folder, height=16, width=16, lora=str(tmp_path / "pytorch_lora_weights.safetensors"))
    again = file.denoise(latents, torch.tensor([500.0]), conditioning, torch.ones(1)).prediction_BCHW
    assert torch.equal(again, predictions[0])


def test_a_lora_that_does_not_fit_is_one_line(
    pipeline_folder: Path, sdxl_folder: Path, tmp_path: Path
) -> None:
    save_lora(tmp_path, DiffusionPipeline.from_pretrained(sdxl_folder).unet, "another_network")
    assert "backbone.lora is " in refused(pipeline_folder, lora=str(tmp_path))


def test_which_file_is_the_lora_has_to_be_clear(pipeline_folder: Path, tmp_path: Path) -> None:
    assert "has 0 safetensors files; accepted: a folder with one" in refused(
        pipeline_folder, lora=str(tmp_path)
    )
    for name in ("one", "two"):
        save_file({"weight": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    assert "has 2 safetensors files" in refused(pipeline_folder, lora=str(tmp_path))
    message = refused(pipeline_folder, lora=str(tmp_path / "nowhere"))
    assert message.startswith(f"backbone.lora is {str(tmp_path / 'nowhere')!r} and cannot be loaded (")
