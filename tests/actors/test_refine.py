"""RegionRefine with a denoiser that knows the answer: what it changes, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from actors.contracts import EpisodeRequest
from actors.engine import Engine, EngineConfig, Episode
from actors.refine import inner_timesteps, make_refinement
from actors.regions import region_mask
from actors.schedule import make_schedule
from actors.solvers import add_noise, solver_step
from tests.actors.fakes import OracleBackbone, sd_alphas_cumprod

LEFT_IS_WEAK = torch.cat([torch.full((8, 4), 0.1), torch.ones(8, 4)], dim=1)
"""Attention that found the prompt's words on the right only."""


def deciding(backbone: OracleBackbone, config: EngineConfig) -> tuple[Engine, Episode]:
    engine = Engine(backbone, config)
    (episode,) = engine.begin([EpisodeRequest("owl", 3)])
    while episode.state == "denoising":
        engine.denoise([episode])
    return engine, episode


def mask_of(episode: Episode) -> torch.Tensor:
    """What refining now will mask."""
    assert episode.region is not None
    return region_mask(episode.region, episode)


def refine(engine: Engine, episode: Episode) -> None:
    engine.act(episode, engine.action_names.index("refine"))
    while episode.state == "denoising":
        engine.denoise([episode])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("refine_steps", [1, 2, 4])
def test_unmasked_area_takes_an_ordinary_step_and_masked_area_converges(
    prediction_type: str, refine_steps: int
) -> None:
    """The clean prediction is spoilt everywhere; refinement repairs it where attention was weak."""
    backbone = OracleBackbone(prediction_type, LEFT_IS_WEAK)  # type: ignore[arg-type]
    engine, episode = deciding(backbone, EngineConfig(refine_steps=refine_steps))
    truth = backbone.truth("owl")
    spoilt = episode.clean_CHW = truth + 0.5
    source, target = episode.level, engine.schedule.points[episode.step_index + 1]
    ordinary = solver_step(episode.latents_CHW[None], spoilt[None], [source], [target])[0]
    mask = mask_of(episode)
    refine(engine, episode)
    outside, inside = mask == 0.0, mask == 1.0
    assert outside.sum() >= 80
    assert inside.sum() >= 80
    torch.testing.assert_close(episode.latents_CHW[:, outside], ordinary[:, outside], atol=1e-4, rtol=0)
    # inside stands the true image, noised to the next point: what is left over is noise of unit variance
    left_over = (episode.latents_CHW - target.alpha * truth)[:, inside] / target.sigma
    assert float(left_over.std()) == pytest.approx(1.0, abs=0.15)
    assert float(left_over.mean()) == pytest.approx(0.0, abs=0.15)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 4, 8])
def test_unmasked_area_has_a_gain_of_one_at_every_noise_level(warmup_steps: int, solver: str) -> None:
    """What an ordinary step would leave there is left there, neither faded nor amplified."""
    backbone = OracleBackbone(attention_HW=LEFT_IS_WEAK)
    config = EngineConfig(solver=solver, warmup_steps=warmup_steps)  # type: ignore[arg-type]
    engine, episode = deciding(backbone, config)
    outside = mask_of(episode) == 0.0
    source, target = episode.level, engine.schedule.points[episode.step_index + 1]
    latents, clean = episode.latents_CHW.double(), episode.clean_CHW.double()
    noise = (latents - source.alpha * clean) / source.sigma
    ordinary = (target.alpha * clean + target.sigma * noise)[:, outside]  # DDIM in float64
    refine(engine, episode)
    refined = episode.latents_CHW.double()[:, outside]
    gain = float((refined * ordinary).sum() / (ordinary * ordinary).sum())
    assert gain == pytest.approx(1.0, abs=1e-4)
    assert float((refined - ordinary).abs().max()) < 1e-3
    assert float((episode.clean_CHW - backbone.truth("owl"))[:, outside].abs().max()) < 1e-3


def test_network_never_sees_two_noise_levels_in_one_image() -> None:
    """Every inner call gets, outside the mask, the original noised to exactly the level it is told."""
    backbone = OracleBackbone("epsilon", LEFT_IS_WEAK)
    engine, episode = deciding(backbone, EngineConfig(refine_steps=3, refine_noise=0.6))
    original = episode.clean_CHW = episode.clean_CHW + 0.5  # not what the denoiser would lead to
    before, timestep = len(backbone.calls), episode.timestep
    outside = mask_of(episode) == 0.0
    refine(engine, episode)
    told = [call[0] for call in backbone.calls[before:]]
    assert told[:3] == [round(0.6 * timestep * share) for share in (1, 2 / 3, 1 / 3)]
    assert told[3] == engine.schedule.points[4].timestep
    noises = []
    for latents, inner in zip(backbone.seen[before:], told[:3], strict=False):
        signal = float(sd_alphas_cumprod()[int(inner)])
        noises.append((latents[0] - signal**0.5 * original)[:, outside] / (1 - signal) ** 0.5)
    for noise in noises[1:]:
        torch.testing.assert_close(noise, noises[0], atol=1e-3, rtol=0)
    assert float(noises[0].std()) == pytest.approx(1.0, abs=0.15)


def test_noise_keeps_unit_variance_across_the_soft_edge() -> None:
    schedule = make_schedule(10, "dpmpp", sd_alphas_cumprod().numpy())
    generator = torch.Generator().manual_seed(0)
    clean = torch.zeros(400, 16, 16)
    fresh, carried = torch.randn(2, 400, 16, 16, generator=generator)
    level, target = schedule.points[3], schedule.points[4]
    latents = add_noise(clean[None], carried[None], [level])[0]
    inner = (schedule.level_at(300.0),)
    ramp = torch.linspace(0.0, 1.0, 16).expand(16, 16)
    refinement = make_refinement(ramp, latents, clean, fresh, level, inner)
    resumed = refinement.resume(clean, target)
    edge = (refinement.mask_1HW[0] > 0.2) & (refinement.mask_1HW[0] < 0.8)
    assert edge.any()
    assert float(resumed[:, edge].std()) == pytest.approx(target.sigma, rel=0.03)


def test_inner_timesteps_go_evenly_down_from_a_share_of_the_present_one() -> None:
    assert inner_timesteps(800.0, 0.5, 4) == [400.0, 300.0, 200.0, 100.0]
