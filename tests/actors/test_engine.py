"""The engine against diffusers' own pipeline, its independence of batching, and its accounting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, StableDiffusionPipeline

from actors.backbones.stable_diffusion import StableDiffusionBackbone
from actors.contracts import Conditioning, Denoised, EpisodeRequest
from actors.engine import Engine, EngineConfig, Episode
from actors.errors import UserError
from actors.schedule import NoiseLevel
from tests.actors.fakes import OracleBackbone

PROMPTS = ("a red fox", "two blue owls", "sky", "an old tree")


def request(seed: int, prompt: str = "a red fox", max_nfe: int | None = None) -> EpisodeRequest:
    return EpisodeRequest(prompt, seed, max_nfe=max_nfe)


def play(engine: Engine, episode: Episode, plan: Sequence[str], then: str = "continue") -> Episode:
    """Take the planned actions, then one kind of action until only stopping is left."""
    for name in [*plan, *[then] * 99]:
        reach_decision(engine, episode)
        if episode.finished:
            break
        legal = engine.legal([episode])[0]
        index = engine.action_names.index(name)
        if len(episode.decisions) >= len(plan) and not legal[index]:
            index = engine.action_names.index("stop")
        engine.act(episode, index)
        if episode.state == "looking":
            engine.receive_look(episode, {"image_reward": np.float32(episode.clean_CHW.mean())})
    return episode


def reach_decision(engine: Engine, episode: Episode) -> None:
    while episode.state == "denoising":
        engine.denoise([episode])


def first_noise(backbone: StableDiffusionBackbone, seed: int) -> torch.Tensor:
    return torch.randn(backbone.latent_shape, generator=torch.Generator().manual_seed(seed))[None]


def dpm_scheduler(pipeline: StableDiffusionPipeline) -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler.from_config(
        dict(pipeline.scheduler.config), timestep_spacing="linspace", final_sigmas_type="zero"
    )


@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
def test_always_continue_equals_the_diffusers_pipeline(
    solver: str, pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    engine = Engine(backbone, EngineConfig(solver=solver, num_steps=6, guidance_scale=3.5))  # type: ignore[arg-type]
    episodes = engine.begin([request(seed, prompt) for seed, prompt in enumerate(PROMPTS)])
    while not all(episode.finished for episode in episodes):
        engine.denoise(episodes)
        for episode in episodes:
            if episode.state == "deciding":
                legal = engine.legal([episode])[0][engine.action_names.index("continue")]
                engine.act(episode, engine.action_names.index("continue" if legal else "stop"))
    reference = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    reference.set_progress_bar_config(disable=True)
    if solver == "dpmpp":
        reference.scheduler = dpm_scheduler(pipeline)
    expected = reference(
        list(PROMPTS),
        num_inference_steps=6,
        guidance_scale=3.5,
        latents=torch.cat([first_noise(backbone, seed) for seed in range(len(PROMPTS))]),
        output_type="latent",
    ).images
    ours = torch.stack([episode.result().latents_CHW for episode in episodes])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert [episode.nfe for episode in episodes] == [6] * len(PROMPTS)
    assert [episode.network_evals for episode in episodes] == [12] * len(PROMPTS)


@pytest.mark.parametrize(
    ("options", "guidance_scale", "evals"),
    [
        ({"solver": "lcm", "guidance_rule": "none"}, 1.0, 4),
        ({"solver": "lcm"}, 1.5, 8),
        ({"solver": "ddim", "eta": 0.7}, 3.5, 8),
        ({"solver": "dpmpp", "guidance_rule": "none"}, 1.0, 4),
    ],
)
def test_noisy_solvers_and_no_guidance_equal_the_diffusers_pipeline(
    options: dict[str, Any],
    guidance_scale: float,
    evals: int,
    pipeline: StableDiffusionPipeline,
    backbone: StableDiffusionBackbone,
) -> None:
    """Fresh noise comes from each episode's own generator, as diffusers takes it from a list of them."""
    config = EngineConfig(num_steps=4, guidance_scale=guidance_scale, actions=("continue",), **options)
    engine = Engine(backbone, config)
    late = engine.begin([request(0, PROMPTS[0])])
    engine.denoise(late)
    episodes = [*late, *engine.begin([request(seed, PROMPTS[seed]) for seed in (1, 2)])]
    while not all(episode.finished for episode in episodes):
        engine.denoise(episodes)
        for episode in episodes:
            if episode.state == "deciding":
                engine.act(episode, 0)
    reference = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    reference.set_progress_bar_config(disable=True)
    if config.solver == "lcm":
        reference.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    if config.solver == "dpmpp":
        reference.scheduler = dpm_scheduler(pipeline)
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    expected = reference(
        list(PROMPTS[:3]),
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        generator=generators,
        latents=torch.stack([torch.randn(backbone.latent_shape, generator=own) for own in generators]),
        eta=config.eta,
        output_type="latent",
    ).images
    ours = torch.stack([episode.result().latents_CHW for episode in episodes])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert [(episode.nfe, episode.network_evals) for episode in episodes] == [(4, evals)] * 3


def test_cfgpp_with_a_full_scale_is_ddim_but_for_the_noise_it_carries(
    pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    """Chung et al. 2024, algorithm 2, written out with the pipeline's network."""
    config = EngineConfig(
        solver="ddim", num_steps=5, guidance_rule="cfg++", guidance_scale=0.6, actions=("continue",)
    )
    engine = Engine(backbone, config)
    (episode,) = engine.begin([request(3)])
    play(engine, episode, [])
    text, null = pipeline.encode_prompt("a red fox", "cpu", 1, True)
    latents, points = first_noise(backbone, 3).double(), engine.schedule.points
    with torch.inference_mode():
        for step, point in enumerate(points):
            without, having = (
                pipeline.unet(latents.float(), point.timestep, encoder_hidden_states=rows).sample.double()
                for rows in (null, text)
            )
            velocity = without + 0.6 * (having - without)
            clean = point.alpha * latents - point.sigma * velocity
            eps_null = point.sigma * latents + point.alpha * without
            if step + 1 < len(points):
                latents = points[step + 1].alpha * clean + points[step + 1].sigma * eps_null
    torch.testing.assert_close(episode.result().latents_CHW.double(), clean[0], atol=1e-4, rtol=0)


def diffusers_from(
    pipeline: StableDiffusionPipeline,
    latents: torch.Tensor,
    timesteps: Sequence[float],
    prompt: str,
    scales: Sequence[float] | None = None,
) -> torch.Tensor:
    """diffusers' DPM-Solver++ over exactly these timesteps, to the end; guidance 4 or as `scales` say."""
    scheduler = dpm_scheduler(pipeline)
    scheduler.set_timesteps(timesteps=[int(timestep) for timestep in timesteps])
    text, null = pipeline.encode_prompt(prompt, "cpu", 1, True)
    with torch.inference_mode():
        for timestep, scale in zip(scheduler.timesteps, scales or [4.0] * len(timesteps), strict=True):
            pair = pipeline.unet(
                latents.repeat(2, 1, 1, 1), timestep, encoder_hidden_states=torch.cat([null, text])
            ).sample
            guided = pair[:1] + scale * (pair[1:] - pair[:1])
            latents = scheduler.step(guided, timestep, latents).prev_sample
    return latents[0]


def test_leaps_equal_diffusers_on_the_visited_timesteps(
    pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    engine = Engine(backbone, EngineConfig(actions=("continue", "stop", "leap-2", "leap-3")))
    (episode,) = engine.begin([request(3)])
    play(engine, episode, ["leap-3", "continue", "leap-2"])
    visited = [engine.schedule.points[index].timestep for index in (0, 1, 2, 3, 6, 7, 9)]
    expected = diffusers_from(pipeline, first_noise(backbone, 3), visited, "a red fox")
    torch.testing.assert_close(episode.result().latents_CHW, expected, atol=1e-4, rtol=0)
    assert episode.nfe == len(visited)


def test_guidance_changes_from_the_next_call_on(
    pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    engine = Engine(
        backbone, EngineConfig(num_steps=6, actions=("continue", "stop", "guidance-2", "guidance-6.5"))
    )
    (episode,) = engine.begin([request(3)])
    play(engine, episode, ["guidance-2", "continue", "guidance-6.5", "continue"])
    points = [point.timestep for point in engine.schedule.points]
    scales = [4.0, 4.0, 4.0, 4.0, 2.0, 6.5]
    expected = diffusers_from(pipeline, first_noise(backbone, 3), points, "a red fox", scales)
    torch.testing.assert_close(episode.result().latents_CHW, expected, atol=1e-4, rtol=0)
    assert episode.nfe == 6


class StraightBackbone(OracleBackbone):
    """Its clean prediction is a straight line in log(alpha / sigma)."""

    def clean_at(self, prompt: str, level: NoiseLevel) -> torch.Tensor:
        return self.truth(prompt) * (1.0 + 0.3 * math.log(level.alpha / level.sigma))

    def denoise(
        self,
        latents_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        conditioning: Conditioning,
        guidance_scale_B: torch.Tensor,
        *,
        attention: bool = False,
    ) -> Denoised:
        signal = self.alphas_cumprod[timesteps_B.round().long()].view(-1, 1, 1, 1)
        bent = conditioning.extras["truth"] * (1.0 + 0.15 * (signal / (1 - signal)).log())
        conditioning = replace(conditioning, extras={"truth": bent})
        return super().denoise(latents_BCHW, timesteps_B, conditioning, guidance_scale_B, attention=attention)


def follow(engine: Engine, plan: Sequence[str], seed: int, prompt: str = "a red fox") -> Episode:
    """A new episode after the planned actions, at its next decision; every look scores 0.1."""
    (episode,) = engine.begin([request(seed, prompt)])
    return go_on(engine, episode, plan)


def go_on(engine: Engine, episode: Episode, plan: Sequence[str]) -> Episode:
    for name in plan:
        reach_decision(engine, episode)
        engine.act(episode, engine.action_names.index(name))
        if episode.state == "looking":
            engine.receive_look(episode, {"image_reward": np.float32(0.1)})
    reach_decision(engine, episode)
    return episode


def test_reuse_goes_on_along_the_line_of_the_last_two_predictions() -> None:
    backbone = StraightBackbone()
    engine = Engine(backbone, EngineConfig(actions=("continue", "stop", "reuse", "restart")))
    reuse = engine.action_names.index("reuse")
    episode = follow(engine, ["reuse"], 2, "owl")
    point = engine.schedule.points[4]
    assert (episode.state, episode.level, episode.nfe) == ("deciding", point, 4)
    torch.testing.assert_close(episode.clean_CHW, backbone.clean_at("owl", point), atol=1e-4, rtol=0)
    with_a_call = follow(engine, ["continue"], 2, "owl")
    assert with_a_call.nfe == 5
    torch.testing.assert_close(episode.latents_CHW, with_a_call.latents_CHW, atol=1e-5, rtol=0)
    assert not engine.legal([episode])[0][reuse], "never twice in a row"
    assert engine.legal([go_on(engine, episode, ["continue"])])[0][reuse]
    assert not engine.legal([go_on(engine, episode, ["restart"])])[0][reuse], "one prediction is no line"


def test_a_fork_goes_on_as_its_original_would_have() -> None:
    """Two branches from one prefix: each is what it is alone, the random numbers of restarts included."""
    engine = Engine(OracleBackbone(attention_HW=torch.rand(8, 8)), EngineConfig())
    one = follow(engine, ["look", "continue"], 4)
    other = one.fork()
    for branch, last in ((one, "refine"), (other, "restart")):
        forked = play(engine, go_on(engine, branch, [last]), [])
        alone = play(engine, follow(engine, ["look", "continue", last], 4), [])
        assert forked.result().decisions == alone.result().decisions
        assert torch.equal(forked.result().latents_CHW, alone.result().latents_CHW)


def test_an_episode_ends_by_itself_when_a_look_leaves_nothing_to_do() -> None:
    engine = Engine(OracleBackbone(), EngineConfig(num_steps=2, warmup_steps=1, actions=("continue", "look")))
    (episode,) = engine.begin([request(1)])
    reach_decision(engine, episode)
    engine.act(episode, engine.action_names.index("look"))
    engine.receive_look(episode, {"image_reward": np.float32(0.1)})
    assert episode.finished


@pytest.mark.parametrize("action", ["refine", "restart"])
def test_multistep_history_does_not_outlive_refine_and_restart(
    action: str, pipeline: StableDiffusionPipeline, backbone: StableDiffusionBackbone
) -> None:
    """From where the action leaves off, the rest is a trajectory of its own."""
    engine = Engine(backbone, EngineConfig(warmup_steps=2))
    (episode,) = engine.begin([request(5)])
    reach_decision(engine, episode)
    engine.act(episode, engine.action_names.index(action))
    reach_decision(engine, episode)
    latents, index = episode.latents_CHW[None].clone(), episode.step_index
    assert index == {"refine": 3, "restart": 0}[action]
    play(engine, episode, [])
    remaining = [point.timestep for point in engine.schedule.points[index:]]
    expected = diffusers_from(pipeline, latents, remaining, "a red fox")
    torch.testing.assert_close(episode.result().latents_CHW, expected, atol=1e-4, rtol=0)


def test_restart_draws_new_noise_from_the_seed(backbone: StableDiffusionBackbone) -> None:
    engine = Engine(backbone, EngineConfig())
    (episode,) = engine.begin([request(8)])
    reach_decision(engine, episode)
    engine.act(episode, engine.action_names.index("restart"))
    generator = torch.Generator().manual_seed(8)
    first, second = (torch.randn(backbone.latent_shape, generator=generator) for _ in range(2))
    assert torch.equal(episode.latents_CHW, second)
    assert not torch.equal(first, second)


def test_the_batch_beside_an_episode_does_not_change_it(backbone: StableDiffusionBackbone) -> None:
    """Alone, or with three others at other timesteps, in another order, one of them refining."""
    engine = Engine(backbone, EngineConfig())
    plans = {0: ["leap-2", "refine"], 1: ["refine", "restart"], 2: ["continue"], 3: ["stop"]}
    alone = [play(engine, engine.begin([request(seed, PROMPTS[seed])])[0], plans[seed]) for seed in plans]
    together = [
        episode
        for start in ((3, 1), (2, 0))
        for episode in engine.begin([request(seed, PROMPTS[seed]) for seed in start])
    ]
    engine.denoise(together[2:])  # two of them are a step ahead
    while any(not episode.finished for episode in together):
        engine.denoise(together)
        for episode in together:
            if episode.state == "deciding":
                plan, taken = plans[episode.request.seed], len(episode.decisions)
                legal = engine.legal([episode])[0][engine.action_names.index("continue")]
                name = plan[taken] if taken < len(plan) else "continue" if legal else "stop"
                engine.act(episode, engine.action_names.index(name))
    for episode in together:
        expected = alone[episode.request.seed].result()
        torch.testing.assert_close(episode.result().latents_CHW, expected.latents_CHW, atol=1e-4, rtol=0)
        assert episode.result().decisions == expected.decisions
        assert episode.nfe == expected.nfe


@pytest.mark.parametrize(
    ("plan", "nfe", "looks"),
    [
        (["stop"], 4, 0),
        (["look", "stop"], 4, 1),
        (["continue", "stop"], 5, 0),
        (["leap-2", "stop"], 5, 0),
        (["refine", "stop"], 7, 0),
        (["restart", "continue", "leap-2", "stop"], 7, 0),
        (["refine", "look", "refine", "look", "stop"], 10, 2),
        ([], 10, 0),
    ],
)
def test_every_denoiser_call_is_counted(plan: list[str], nfe: int, looks: int) -> None:
    backbone = OracleBackbone()
    engine = Engine(backbone, EngineConfig(look_price=0.25))
    (episode,) = engine.begin([request(1)])
    result = play(engine, episode, plan).result()
    assert result.nfe == nfe == len(backbone.calls)
    assert result.network_evals == 2 * nfe
    assert result.looks == looks
    assert result.cost == pytest.approx(nfe + 0.25 * looks)


def test_one_call_serves_episodes_at_different_timesteps() -> None:
    backbone = OracleBackbone()
    engine = Engine(backbone, EngineConfig(warmup_steps=0))
    late, early = engine.begin([request(1), request(2)])
    engine.denoise([early])
    engine.act(early, engine.action_names.index("leap-2"))
    engine.denoise([late, early])
    points = engine.schedule.points
    assert backbone.calls == [[points[0].timestep], [points[0].timestep, points[2].timestep]]
    engine.denoise([late, early])  # both are deciding: nothing to do
    assert len(backbone.calls) == 2


@pytest.mark.parametrize("budget", [1, 2, 4, 7, 9])
@pytest.mark.parametrize("plan", [["refine"] * 9, ["restart"] * 9, ["leap-2"] * 9, []])
def test_the_budget_is_never_exceeded(budget: int, plan: list[str]) -> None:
    backbone = OracleBackbone()
    engine = Engine(backbone, EngineConfig(max_attempts=20))
    (episode,) = engine.begin([request(1, max_nfe=budget)])
    for name in [*plan, *["continue"] * 20]:
        reach_decision(engine, episode)
        legal = engine.legal([episode])[0]
        index = engine.action_names.index(name)
        if episode.nfe == budget:
            spend_nothing = {engine.action_names.index("stop"), engine.action_names.index("look")}
            assert set(np.flatnonzero(legal)) == spend_nothing
        if legal[index]:
            engine.act(episode, index)
    assert episode.nfe <= budget
    assert episode.nfe == len(backbone.calls)


def test_oracle_image_is_reached_whatever_the_path() -> None:
    backbone = OracleBackbone("v_prediction")
    engine = Engine(backbone, EngineConfig())
    for plan in ([], ["leap-2", "refine"], ["restart"], ["stop"]):
        (episode,) = engine.begin([request(11, "owl")])
        result = play(engine, episode, plan).result()
        torch.testing.assert_close(result.latents_CHW, backbone.truth("owl"), atol=1e-4, rtol=0)


def test_non_finite_predictions_name_prompt_and_step() -> None:
    def spoil_second_row(prediction: torch.Tensor) -> torch.Tensor:
        prediction[1, 0, 0, 0] = torch.nan
        return prediction

    engine = Engine(OracleBackbone(poison=spoil_second_row), EngineConfig())
    with pytest.raises(FloatingPointError, match=r"prompt 'sky', seed 6, step 0"):
        engine.denoise(engine.begin([request(5), request(6, "sky")]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "euler"}, r"engine.solver is 'euler'; accepted: ddim, dpmpp, flow_euler or lcm"),
        ({"num_steps": 0}, r"engine.num_steps is 0; accepted: a whole number from 1"),
        ({"refine_noise": 1.5}, r"engine.refine_noise is 1.5; accepted: a number above 0 and up to 1"),
        ({"guidance_scale": float("nan")}, r"engine.guidance_scale is nan; accepted: a number from 0"),
        ({"timestep_spacing": "karras"}, r"engine.timestep_spacing is 'karras'; accepted: .*leading"),
        ({"solver": "flow_euler"}, r"engine.solver is 'flow_euler'; accepted with this backbone: ddim"),
        ({"actions": ("continue", "jump")}, r"engine.actions has 'jump'; accepted: continue, stop"),
        ({"actions": ("continue", "leap-1")}, r"engine.actions has 'leap-1'; accepted"),
        ({"actions": ("stop", "stop")}, r"engine.actions is \['stop', 'stop'\]; accepted"),
        ({"warmup_steps": 10}, r"engine.warmup_steps is 10; accepted: .* below engine.num_steps \(10\)"),
        ({"max_nfe": 0}, r"engine.max_nfe is 0; accepted: a whole number from 1"),
        ({"eta": 0.5}, r"engine.eta is 0.5; accepted: 0, or with solver ddim up to 1"),
        ({"guidance_rule": "apg"}, r"engine.guidance_rule is 'apg'; accepted: cfg, cfg\+\+, none"),
        ({"guidance_rule": "cfg++"}, r"engine.guidance_scale is 4.0; accepted: with cfg\+\+ 0 to 1"),
        ({"actions": ("continue", "guidance-0")}, r"engine.actions has 'guidance-0'; accepted"),
        ({"actions": ("continue", "guidance-inf")}, r"engine.actions has 'guidance-inf'; accepted"),
        (
            {"actions": ("continue", "guidance-3"), "guidance_rule": "none"},
            r"engine.actions has 'guidance-3'; accepted .* 'none': no guidance-w",
        ),
        ({"actions": ("stop", "restart")}, r"accepted: with continue or a leap among them"),
    ],
)
def test_impossible_configurations_are_one_line_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Engine(OracleBackbone(), EngineConfig(**options))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
