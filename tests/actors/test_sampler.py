"""The policy on a diffusers pipeline gives the engine's images, and says what does not fit together."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from actors.backbones.config import BackboneConfig
from actors.backbones.from_pipeline import backbone_of
from actors.backbones.loading import load_backbone
from actors.backbones.schedulers import matching_scheduler
from actors.backbones.stable_diffusion import StableDiffusionBackbone
from actors.contracts import Backbone, EpisodeRequest, EpisodeResult
from actors.engine import Engine, EngineConfig
from actors.errors import UserError
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.policy import PolicyDecider, PolicyNetwork, load_policy, save_policy
from actors.rollout import rollout
from actors.sampler import AdaptiveSampler
from actors.stop_callback import StopCallback, stop_callback
from tests.actors.fakes import brightness_scorer

PROMPTS = ("a red fox", "two blue owls", "sky", "an old tree")
STOPPING = EngineConfig(num_steps=7, guidance_scale=3.5, warmup_steps=2, actions=("continue", "stop"))
LOOKING = EngineConfig(num_steps=6, warmup_steps=1, actions=("continue", "stop", "look", "restart"))


def save_wilful_policy(
    folder: Path,
    backbone: Backbone,
    engine: EngineConfig,
    view: str = "latent",
    identity: str | None = None,
    options: BackboneConfig | None = None,
) -> Path:
    """A random policy whose choice hangs on what it observes."""
    observation = ObservationConfig(view, look_scores=("image_reward",))  # type: ignore[arg-type]
    sizes = ObservationSizes(backbone.feature_dim, backbone.text_dim, embedding_dim=8)
    observer = Observer(observation, sizes, engine.actions)
    torch.manual_seed(8)
    network = PolicyNetwork(observer.policy_dim, observer.num_actions, hidden=(16,))
    torch.nn.init.normal_(network.layers[-1].weight)  # type: ignore[arg-type]
    metadata = {
        "backbone": identity or backbone.identity,
        "backbone_config": asdict(options or BackboneConfig("tiny")),
        "engine": asdict(engine),
        "observation": asdict(observation),
        "sizes": asdict(sizes),
    }
    save_policy(folder, network, metadata)
    return folder


def engine_results(
    folder: Path,
    backbone: Backbone,
    engine: EngineConfig,
    view: str,
) -> list[EpisodeResult]:
    """One image at a time, put together from the engine's own parts."""
    network, _ = load_policy(folder)
    sizes = ObservationSizes(backbone.feature_dim, backbone.text_dim, embedding_dim=8)
    observer = Observer(ObservationConfig(view, look_scores=("image_reward",)), sizes, engine.actions)  # type: ignore[arg-type]

    def reward_only(images: Any, prompts: Any) -> Any:
        return {"image_reward": brightness_scorer(images, prompts)["image_reward"]}

    return [
        rollout(
            Engine(backbone, engine),
            PolicyDecider(network, observer),
            observer,
            [EpisodeRequest(prompt, seed)],
            slots=1,
            scorer=reward_only,
        )[0]
        for seed, prompt in enumerate(PROMPTS)
    ]


def noise(seeds: int = len(PROMPTS)) -> torch.Tensor:
    return torch.cat(
        [torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed)) for seed in range(seeds)]
    )


def steps_of(results: Any) -> list[tuple[int, list[str]]]:
    return [(result.nfe, [decision.action for decision in result.decisions]) for result in results]


@pytest.fixture
def own_pipeline(pipeline_folder: Path) -> StableDiffusionPipeline:
    """Of one test, to be changed."""
    loaded = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_sampler_gives_the_engines_images_and_leaves_the_pipeline_as_it_was(
    tmp_path: Path, own_pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    folder = save_wilful_policy(tmp_path, backbone, LOOKING)
    before = own_pipeline("sky", num_inference_steps=2, latents=noise(1), output_type="np").images
    sampler = AdaptiveSampler.from_pretrained(folder, scorer=brightness_scorer)
    sampled = sampler(own_pipeline, PROMPTS, seeds=range(len(PROMPTS)), output_type="latent")
    expected = engine_results(folder, backbone, LOOKING, "latent")
    assert steps_of(sampled.episodes) == steps_of(expected)
    assert "look" in {decision.action for result in expected for decision in result.decisions}
    assert isinstance(sampled.images, torch.Tensor)
    torch.testing.assert_close(
        sampled.images, torch.stack([result.latents_CHW for result in expected]), atol=1e-4, rtol=0
    )
    after = own_pipeline("sky", num_inference_steps=2, latents=noise(1), output_type="np").images
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_sampler_takes_every_kind_of_pipeline(tmp_path: Path, folder: Path) -> None:
    """And a policy's own resolution, which is not the pipeline's."""
    options = BackboneConfig(str(folder), height=16, width=32)
    backbone = load_backbone(options)
    flow = backbone.prediction_type == "flow"
    engine = replace(LOOKING, solver="flow_euler") if flow else LOOKING
    policy = save_wilful_policy(tmp_path, backbone, engine, options=options)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    sampled = AdaptiveSampler.from_pretrained(policy, scorer=brightness_scorer)(
        pipeline, PROMPTS, seeds=range(len(PROMPTS)), output_type="latent"
    )
    expected = engine_results(policy, backbone, engine, "latent")
    assert steps_of(sampled.episodes) == steps_of(expected)
    assert isinstance(sampled.images, torch.Tensor)
    torch.testing.assert_close(
        sampled.images, torch.stack([result.latents_CHW for result in expected]), atol=1e-4, rtol=0
    )
    assert sampled.images.shape[1:] == backbone.latent_shape


def test_a_pipelines_vae_keeps_its_type(sdxl_folder: Path) -> None:
    """SDXL's overflows float16: the pipeline casts it for each decoding, and goes on doing so."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder)
    pipeline.vae = AutoencoderKL(
        latent_channels=4, force_upcast=True, norm_num_groups=8, block_out_channels=(8,)
    )
    pipeline.vae.half()
    backbone = backbone_of(pipeline)
    backbone.decode(torch.zeros(1, *backbone.latent_shape))
    assert pipeline.vae.dtype == torch.float16


def test_pil_and_np_are_diffusers_own_decoding(
    tmp_path: Path, own_pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    sampler = AdaptiveSampler.from_pretrained(save_wilful_policy(tmp_path, backbone, STOPPING))
    latents, array, pictures = (
        sampler(own_pipeline, list(PROMPTS), seeds=[3, 1, 4, 1], output_type=kind, slots=3).images  # type: ignore[arg-type]
        for kind in ("latent", "np", "pil")
    )
    with torch.inference_mode():
        decoded = own_pipeline.vae.decode(latents / own_pipeline.vae.config.scaling_factor).sample
    expected = own_pipeline.image_processor.postprocess(decoded, output_type="np")
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, expected, atol=0.51 / 255)
    np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in pictures]), array * 255)


def test_drawn_seeds_are_told_and_give_the_same_image_again(
    tmp_path: Path, own_pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    sampler = AdaptiveSampler.from_pretrained(save_wilful_policy(tmp_path, backbone, STOPPING))
    first = sampler(own_pipeline, ["sky", "sky"], output_type="latent", max_nfe=4)
    seeds = [episode.request.seed for episode in first.episodes]
    assert seeds[0] != seeds[1]
    assert max(episode.nfe for episode in first.episodes) <= 4
    second = sampler(own_pipeline, "sky", seeds=seeds[1], output_type="latent", max_nfe=4)
    torch.testing.assert_close(second.images[0], first.images[1], atol=1e-4, rtol=0)


def test_what_the_safety_checker_objects_to_is_black(
    tmp_path: Path, own_pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    sampler = AdaptiveSampler.from_pretrained(save_wilful_policy(tmp_path, backbone, STOPPING))
    own_pipeline.safety_checker = lambda images, clip_input: (images, [False, True])
    own_pipeline.feature_extractor = lambda images, return_tensors: SimpleNamespace(
        to=lambda device: SimpleNamespace(pixel_values=torch.zeros(len(images)))
    )
    sampled = sampler(own_pipeline, ["sky", "sky"], seeds=[0, 1], output_type="np")
    assert sampled.nsfw_content_detected == [False, True]
    assert [bool(np.any(np.asarray(image))) for image in sampled.images] == [True, False]


def test_what_does_not_fit_is_one_line(
    tmp_path: Path, own_pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    looking = save_wilful_policy(tmp_path / "looking", backbone, LOOKING)
    with pytest.raises(UserError, match=r"scorer is None.*shapes_scorer"):
        AdaptiveSampler.from_pretrained(looking)
    blind = AdaptiveSampler.from_pretrained(looking, scorer=lambda images, prompts: {"dino": images})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="without image_reward"):
        blind(own_pipeline, PROMPTS, seeds=range(len(PROMPTS)))
    other = save_wilful_policy(tmp_path / "other", backbone, STOPPING, identity="elsewhere@0123456789ab")
    with pytest.raises(UserError, match=r"trained on backbone elsewhere@0123456789ab, this one is"):
        AdaptiveSampler.from_pretrained(other)(own_pipeline, "sky", seeds=0)
    AdaptiveSampler.from_pretrained(other, verify=False)(own_pipeline, "sky", seeds=0)
    sampler = AdaptiveSampler.from_pretrained(save_wilful_policy(tmp_path / "fits", backbone, STOPPING))
    for seeds in (3, [1], [-1, 2]):
        with pytest.raises(UserError, match="seeds is"):
            sampler(own_pipeline, ["sky", "owl"], seeds=seeds)
    with pytest.raises(UserError, match="output_type is 'pt'"):
        sampler(own_pipeline, "sky", output_type="pt")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pipeline is a DDIMScheduler; accepted: StableDiffusionPipeline"):
        sampler(own_pipeline.scheduler, "sky")


def test_a_pipeline_of_unknown_weights_is_warned_about(
    tmp_path: Path, own_pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    folder = save_wilful_policy(tmp_path, backbone, STOPPING)
    own_pipeline.unet.register_to_config(_name_or_path=str(tmp_path / "nowhere" / "unet"))
    with pytest.warns(UserWarning, match="not loaded from one folder"):
        AdaptiveSampler.from_pretrained(folder)(own_pipeline, "sky", seeds=0)
    with pytest.warns(UserWarning, match="not loaded from one folder"):
        stop_callback(folder, own_pipeline)


@pytest.mark.parametrize(("solver", "view"), [("dpmpp", "latent"), ("ddim", "latent"), ("dpmpp", "timestep")])
def test_the_callback_gives_the_engines_images(
    solver: str,
    view: str,
    tmp_path: Path,
    own_pipeline: StableDiffusionPipeline,
    backbone: StableDiffusionBackbone,
) -> None:
    engine = EngineConfig(**{**asdict(STOPPING), "solver": solver})
    folder = save_wilful_policy(tmp_path, backbone, engine, view)
    expected = engine_results(folder, backbone, engine, view)
    if view == "latent":
        assert len({result.nfe for result in expected}) > 1  # some stop before others
    stop = stop_callback(folder, own_pipeline)
    own_pipeline.scheduler = stop.scheduler
    calls: list[int] = []
    own_pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    for seed, (prompt, result) in enumerate(zip(PROMPTS, expected, strict=True)):
        calls.clear()
        image = own_pipeline(
            prompt, latents=noise()[seed : seed + 1], output_type="latent", **stop.options
        ).images[0]
        torch.testing.assert_close(image, result.latents_CHW, atol=1e-4, rtol=0)
        assert len(calls) == result.nfe
        assert steps_of(stop.episodes) == steps_of([result])
        assert stop.episodes[0].request.prompt == prompt


def test_each_row_of_a_batch_gets_the_image_it_was_stopped_at(
    tmp_path: Path, own_pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    folder = save_wilful_policy(tmp_path, backbone, STOPPING)
    expected = engine_results(folder, backbone, STOPPING, "latent")
    stop = stop_callback(folder, own_pipeline)
    own_pipeline.scheduler = stop.scheduler
    images = own_pipeline(list(PROMPTS), latents=noise(), output_type="latent", **stop.options).images
    torch.testing.assert_close(
        images, torch.stack([result.latents_CHW for result in expected]), atol=1e-4, rtol=0
    )
    assert steps_of(stop.episodes) == steps_of(expected)


def test_the_callback_says_what_it_cannot_do(
    tmp_path: Path, own_pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    looking = save_wilful_policy(tmp_path / "looking", backbone, LOOKING)
    with pytest.raises(UserError, match=r"look.*a callback can continue or stop"):
        stop_callback(looking, own_pipeline)
    with pytest.raises(UserError, match="pipeline is a DDIMScheduler"):
        stop_callback(looking, own_pipeline.scheduler)
    stop = stop_callback(save_wilful_policy(tmp_path / "fits", backbone, STOPPING), own_pipeline)
    with pytest.raises(
        UserError, match=r"7 steps of DDIMScheduler; accepted: the callback's own `scheduler`"
    ):
        own_pipeline("sky", **stop.options)
    own_pipeline.scheduler = stop.scheduler
    with pytest.raises(UserError, match=r"8 steps of DPMSolver.*num_inference_steps=7"):
        own_pipeline("sky", **{**stop.options, "num_inference_steps": 8})
    with pytest.raises(UserError, match=r"guidance_scale is 2\.0.*accepted: 3\.5"):
        own_pipeline("sky", **{**stop.options, "guidance_scale": 2.0})
    embeddings, null = own_pipeline.encode_prompt("owl", "cpu", 1, True)
    with pytest.raises(UserError, match="prompt_embeds"):
        own_pipeline(prompt_embeds=2 * embeddings, negative_prompt_embeds=null, **stop.options)


def test_the_hooks_go_with_the_callback(
    tmp_path: Path, own_pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    stop: StopCallback | None = stop_callback(save_wilful_policy(tmp_path, backbone, STOPPING), own_pipeline)
    networks = (own_pipeline.unet, own_pipeline.unet.mid_block, own_pipeline.text_encoder)
    assert all(network._forward_hooks for network in networks)
    del stop
    assert not any(network._forward_hooks for network in networks)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
@pytest.mark.parametrize("spacing", [None, "leading", "linspace", "trailing"])
def test_the_matching_scheduler_takes_the_engines_steps(
    solver: Any, spacing: Any, own_pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    config = EngineConfig(solver=solver, timestep_spacing=spacing, num_steps=9)
    scheduler = matching_scheduler(own_pipeline.scheduler, config)
    scheduler.set_timesteps(9)
    assert scheduler.timesteps.tolist() == [p.timestep for p in Engine(backbone, config).schedule.points]
