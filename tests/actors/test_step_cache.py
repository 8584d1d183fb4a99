"""Flux with a cache across steps: what diffusers' pipeline makes of it, and when it is forgotten."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FluxPipeline, TaylorSeerCacheConfig

from actors.backbones import step_cache
from actors.backbones.config import BackboneConfig
from actors.backbones.flux import FluxBackbone, pack, unpack
from actors.backbones.loading import load_backbone
from actors.contracts import Denoised, EpisodeRequest
from actors.engine import Engine, EngineConfig
from actors.errors import UserError
from tests.actors.conftest import FLUX_HEIGHT, FLUX_WIDTH
from tests.actors.trajectories import first_noises, run_to_the_end

CACHES = ("first_block", "taylorseer")
FLOW = EngineConfig(
    solver="flow_euler", num_steps=12, warmup_steps=1, guidance_scale=3.5, actions=("continue", "stop")
)


@pytest.fixture(autouse=True)
def _loose_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights make the first block's output change more from step to step than trained ones do."""
    monkeypatch.setattr(step_cache, "FirstBlockCacheConfig", partial(FirstBlockCacheConfig, threshold=0.5))


@pytest.fixture(params=CACHES)
def cache(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cached(cache: str, flux_folder: Path) -> FluxBackbone:
    return load(flux_folder, cache)


def load(folder: Path, cache: str) -> FluxBackbone:
    config = BackboneConfig(str(folder), height=FLUX_HEIGHT, width=FLUX_WIDTH, cache=cache)  # type: ignore[arg-type]
    backbone = load_backbone(config)
    assert isinstance(backbone, FluxBackbone)
    return backbone


def step(backbone: FluxBackbone, timestep: float, prompt: str = "owl") -> Denoised:
    """Always of the same latents, so that only what is cached can make a difference."""
    latents = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    return backbone.denoise(
        latents, torch.tensor([timestep]), backbone.encode_prompts([prompt]), torch.tensor([3.5])
    )


def test_a_trajectory_equals_the_diffusers_pipelines(
    cache: str, cached: FluxBackbone, flux: FluxBackbone, flux_folder: Path
) -> None:
    pipeline = FluxPipeline.from_pretrained(flux_folder)
    pipeline.set_progress_bar_config(disable=True)
    dev = pipeline.transformer.config.guidance_embeds
    pipeline.transformer.enable_cache(
        FirstBlockCacheConfig(threshold=0.5)
        if cache == "first_block"
        else TaylorSeerCacheConfig(taylor_factors_dtype=torch.float32)
    )
    tokens = pipeline(
        ["owl"],
        latents=pack(first_noises(flux, 1)),
        max_sequence_length=512 if dev else 256,
        output_type="latent",
        num_inference_steps=12,
        guidance_scale=3.5,
        height=FLUX_HEIGHT,
        width=FLUX_WIDTH,
    ).images
    ours = run_to_the_end(cached, FLOW, ["owl"])
    torch.testing.assert_close(ours, unpack(tokens, ours.shape[2:]), atol=1e-4, rtol=0)
    assert not torch.equal(ours, run_to_the_end(flux, FLOW, ["owl"]))  # the cache was used


def test_one_after_the_other_equals_each_alone(cached: FluxBackbone) -> None:
    alone = run_to_the_end(cached, FLOW, ["owl"])
    run_to_the_end(cached, FLOW, ["a red fox"])
    assert torch.equal(run_to_the_end(cached, FLOW, ["owl"]), alone)


def test_the_cache_is_forgotten_when_the_trajectory_changes(cached: FluxBackbone, flux: FluxBackbone) -> None:
    timesteps = [990.0 - 10 * index for index in range(12)]
    for timestep in timesteps:
        step(cached, timestep)
    stale = step(cached, 875.0).prediction_BCHW
    fresh = step(flux, 875.0).prediction_BCHW
    assert not torch.equal(stale, fresh)  # went on: something was reused
    assert torch.equal(step(cached, 875.0).prediction_BCHW, fresh)  # did not fall
    for timestep in timesteps:
        step(cached, timestep)
    other = step(cached, 875.0, "a red fox").prediction_BCHW
    assert torch.equal(other, step(flux, 875.0, "a red fox").prediction_BCHW)  # another prompt


def test_a_step_that_the_cache_skips_keeps_the_features(flux_folder: Path) -> None:
    backbone = load(flux_folder, "first_block")
    first = step(backbone, 500.0)
    skipped = step(backbone, 499.0)  # little has changed in the first block
    assert torch.equal(skipped.features_BF, first.features_BF)


def test_a_batch_and_attention_are_refused_in_one_line(cache: str, cached: FluxBackbone) -> None:
    engine = Engine(cached, replace(FLOW, warmup_steps=0, actions=("continue", "stop", "refine")))
    with pytest.raises(
        UserError, match=rf"backbone.cache is '{cache}' and a batch holds 2 episodes; accepted"
    ):
        engine.denoise(engine.begin([EpisodeRequest("owl", 0), EpisodeRequest("fox", 1)]))
    (episode,) = engine.begin([EpisodeRequest("owl", 0)])
    with pytest.raises(UserError, match=rf"backbone.cache is '{cache}' and refine needs attention maps; acc"):
        engine.denoise([episode])
