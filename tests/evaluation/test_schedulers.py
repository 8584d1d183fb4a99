"""diffusers' schedulers over a backbone: against ODE solutions, and against the engine's own solvers."""

import math

import pytest
import torch

from actors.contracts import Conditioning, Denoised, EpisodeRequest
from actors.engine import EngineConfig
from actors.errors import UserError
from evaluation.baselines import parse_baseline
from evaluation.baselines.names import SCHEDULERS
from evaluation.baselines.oracles import fixed_schedule
from evaluation.baselines.schedulers import SchedulerSampler, initial_noise, make_scheduler
from evaluation.generate import Job, generate
from evaluation.methods import BaselineMethod
from tests.evaluation.fakes import ENGINE, FakeBackbone, open_fake_bench

REQUESTS = tuple(EpisodeRequest(f"prompt {index}", 100 + index) for index in range(5))
SPREAD = 0.5


class GaussianBackbone(FakeBackbone):
    """The exact denoiser of data that is normal with mean 0 and standard deviation SPREAD.

    Its probability-flow ODE is solved in closed form: x shrinks by the ratio of the marginal deviations.
    """

    def denoise(
        self,
        latents_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        conditioning: Conditioning,
        guidance_scale_B: torch.Tensor,
        *,
        attention: bool = False,
    ) -> Denoised:
        self.rows_denoised += len(latents_BCHW)
        place_B = timesteps_B.double().clamp(0, 999)
        below_B, above_B = place_B.floor().long(), place_B.ceil().long()
        share_B = place_B - below_B
        deviations_T = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt().log()
        log_sigma_B = torch.lerp(deviations_T[below_B], deviations_T[above_B], share_B)
        signal_B = 1 / (1 + log_sigma_B.exp() ** 2)
        alpha_B, sigma_B = signal_B.sqrt(), (1 - signal_B).sqrt()
        clean_B = alpha_B * SPREAD**2 / (alpha_B**2 * SPREAD**2 + sigma_B**2)
        velocity_B = (alpha_B - clean_B * 1.0) / sigma_B  # v = (alpha x - x0) / sigma, with x0 = clean_B x
        prediction_BCHW = velocity_B.float()[:, None, None, None] * latents_BCHW
        return Denoised(prediction_BCHW, latents_BCHW.mean((2, 3)), None)


@pytest.mark.parametrize("family", SCHEDULERS)
def test_with_many_steps_every_solver_reaches_the_odes_solution(family: str) -> None:
    backbone = GaussianBackbone()
    ends = SchedulerSampler(family, 200, EngineConfig(), backbone).run(REQUESTS, slots=5)
    made = torch.stack([end.latents_CHW for end in ends])
    signal = float(backbone.alphas_cumprod[-1])
    marginal = math.sqrt(signal * SPREAD**2 + 1 - signal)
    solution = initial_noise(backbone, REQUESTS) * SPREAD / marginal
    assert (made - solution).abs().max() < 0.05


@pytest.mark.parametrize("family", [family for family in SCHEDULERS if family != "euler"])
def test_higher_order_solvers_need_fewer_steps_than_euler(family: str) -> None:
    """What they are for: at 12 steps nearer to the solution than Euler's."""
    backbone = GaussianBackbone()
    signal = float(backbone.alphas_cumprod[-1])
    solution = initial_noise(backbone, REQUESTS) * SPREAD / math.sqrt(signal * SPREAD**2 + 1 - signal)

    def error(name: str) -> float:
        ends = SchedulerSampler(name, 12, EngineConfig(), backbone).run(REQUESTS, slots=5)
        return float((torch.stack([end.latents_CHW for end in ends]) - solution).abs().mean())

    assert error(family) < error("euler")


def test_the_rebuilt_noise_schedule_is_the_models() -> None:
    backbone = FakeBackbone()
    rebuilt = make_scheduler("unipc", backbone).alphas_cumprod
    torch.testing.assert_close(rebuilt.double(), backbone.alphas_cumprod, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "calls"), [("dpm-6", 6), ("unipc-6", 6), ("pndm-6", 7), ("deis-6", 6), ("euler-6", 6)]
)
def test_every_call_is_counted_pndms_extra_one_too(name: str, calls: int) -> None:
    bench, baseline = open_fake_bench(), parse_baseline(name)
    made = generate(bench, Job(BaselineMethod(baseline, baseline.engine_config(ENGINE)), REQUESTS, slots=2))
    assert {(row.nfe, row.network_evals, row.looks, row.cost) for row in made.rows} == {
        (calls, 2 * calls, 0, calls)
    }
    assert isinstance(bench.backbone, FakeBackbone)
    assert bench.backbone.rows_denoised == calls * len(REQUESTS)


def test_images_do_not_depend_on_their_neighbours() -> None:
    sampler = SchedulerSampler("unipc", 5, EngineConfig(), FakeBackbone())
    together, alone = sampler.run(REQUESTS, slots=5), sampler.run(REQUESTS, slots=1)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.latents_CHW, other.latents_CHW)


def test_they_start_where_the_engine_starts() -> None:
    """From the same noise all good solvers end near each other; from another one they do not."""
    bench = open_fake_bench()
    engine = fixed_schedule(bench, EngineConfig(solver="dpmpp"), 60).run(REQUESTS, slots=5)
    unipc = SchedulerSampler("unipc", 60, EngineConfig(), bench.backbone).run(REQUESTS, slots=5)
    for place, end in enumerate(engine):
        near = (end.latents_CHW - unipc[place].latents_CHW).abs().mean()
        far = (end.latents_CHW - unipc[(place + 1) % 5].latents_CHW).abs().mean()
        assert near < 0.2 * far


def test_a_guidance_rule_that_they_do_not_know_is_one_line() -> None:
    config = EngineConfig(guidance_rule="cfg++", guidance_scale=0.5)
    with pytest.raises(UserError, match=r"engine\.guidance_rule"):
        SchedulerSampler("unipc", 5, config, FakeBackbone())
