"""Solvers and schedules against diffusers' schedulers, over whole trajectories and mixed timesteps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)

from actors.contracts import PredictionType
from actors.errors import UserError
from actors.schedule import CLEAN, NoiseLevel, Schedule, SolverName, Spacing, make_schedule, noise_level
from actors.solvers import (
    add_noise,
    clean_prediction,
    consistency_prediction,
    ddim_noise,
    extrapolation,
    implied_noise,
    solver_step,
)

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (4, 6, 5)
PREDICTIONS: tuple[PredictionType, ...] = ("epsilon", "v_prediction")


def ddim(prediction_type: str, spacing: str) -> DDIMScheduler:
    return DDIMScheduler(
        **SD,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def dpmpp(prediction_type: str, spacing: str = "linspace") -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        **SD,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        lower_order_final=True,
        steps_offset=1,
    )


def network(latents: torch.Tensor, timestep: float) -> torch.Tensor:
    """A nonlinear stand-in for a denoiser, each sample on its own."""
    return torch.tanh(0.8 * latents.roll(1, dims=-1) + math.sin(timestep / 170.0)) + 0.1 * latents


def noise(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def reference(scheduler: object, latents: torch.Tensor) -> torch.Tensor:
    """diffusers' trajectory of one sample, to its end."""
    for timestep in scheduler.timesteps:  # type: ignore[attr-defined]
        prediction = network(latents, float(timestep))
        latents = scheduler.step(prediction[None], timestep, latents[None]).prev_sample[0]  # type: ignore[attr-defined]
    return latents


class Trajectory:
    """One sample under our solver: where it stands, and its history."""

    def __init__(self, levels: Sequence[NoiseLevel], seed: int) -> None:
        self.levels = [*levels, CLEAN]
        self.latents = noise(seed)
        self.index = 0
        self.history: tuple[torch.Tensor, NoiseLevel] | None = None

    @property
    def done(self) -> bool:
        return self.levels[self.index] == CLEAN


def advance(trajectories: Sequence[Trajectory], prediction_type: PredictionType, multistep: bool) -> None:
    """One step of each, in one batch."""
    sources = [t.levels[t.index] for t in trajectories]
    targets = [t.levels[t.index + 1] for t in trajectories]
    latents = torch.stack([t.latents for t in trajectories])
    predictions = torch.stack(
        [network(t.latents, s.timestep) for t, s in zip(trajectories, sources, strict=True)]
    )
    clean = clean_prediction(predictions, latents, sources, prediction_type)
    previous = [t.history[0] if t.history else torch.full(SHAPE, 1e3) for t in trajectories]
    stepped = solver_step(
        latents,
        clean,
        sources,
        targets,
        previous_clean_BCHW=torch.stack(previous) if multistep else None,
        previous=[t.history[1] if t.history else None for t in trajectories] if multistep else None,
    )
    for row, trajectory in enumerate(trajectories):
        trajectory.history = (clean[row], sources[row])
        trajectory.latents = stepped[row]
        trajectory.index += 1


def alphas() -> np.ndarray:
    table: np.ndarray = ddim("epsilon", "leading").alphas_cumprod.double().numpy()
    return table


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within 1e-5 of the trajectory's scale, in float32."""
    assert ours.dtype == theirs.dtype == torch.float32
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize(
    ("solver", "spacing", "num_steps", "scheduler"),
    [
        ("ddim", "leading", 10, ddim),
        ("ddim", "leading", 50, ddim),
        ("ddim", "trailing", 20, ddim),
        ("dpmpp", "linspace", 5, dpmpp),
        ("dpmpp", "linspace", 10, dpmpp),
        ("dpmpp", "linspace", 20, dpmpp),
        ("dpmpp", "leading", 12, dpmpp),
        ("dpmpp", "trailing", 15, dpmpp),
    ],
)
def test_whole_trajectories_at_mixed_timesteps_equal_diffusers(
    prediction_type: PredictionType,
    solver: SolverName,
    spacing: Spacing,
    num_steps: int,
    scheduler: Callable[[str, str], DDIMScheduler],
) -> None:
    schedule = make_schedule(num_steps, solver, alphas(), spacing=spacing)
    trajectories = [Trajectory(schedule.points, seed) for seed in range(3)]
    expected = []
    for seed in range(3):
        theirs = scheduler(prediction_type, spacing)
        theirs.set_timesteps(num_steps)
        assert theirs.timesteps.tolist() == [point.timestep for point in schedule.points]
        expected.append(reference(theirs, noise(seed)))
    for tick in range(num_steps + 2):  # the second and third sample start one and two steps later
        moving = [t for late, t in enumerate(trajectories) if tick >= late and not t.done]
        advance(moving, prediction_type, multistep=solver == "dpmpp")
    for trajectory, theirs_end in zip(trajectories, expected, strict=True):
        assert trajectory.done
        assert_same(trajectory.latents, theirs_end)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("visited", [(0, 1, 3, 4, 9), (0, 3, 6, 7, 8, 9), (0, 4, 5)])
def test_dpmpp_after_leaps_equals_diffusers_on_the_visited_timesteps(
    prediction_type: PredictionType, visited: tuple[int, ...]
) -> None:
    points = make_schedule(10, "dpmpp", alphas()).points
    leaping = Trajectory([points[index] for index in visited], seed=4)
    plain = Trajectory(points, seed=5)
    while not leaping.done:
        advance([leaping, plain], prediction_type, multistep=True)
    theirs = dpmpp(prediction_type)
    theirs.set_timesteps(timesteps=[int(points[index].timestep) for index in visited])
    assert_same(leaping.latents, reference(theirs, noise(4)))


def test_ddim_leap_equals_a_coarser_ddim() -> None:
    points = make_schedule(20, "ddim", alphas()).points
    leaping = Trajectory(points[1::2], seed=6)  # every second point: the grid of 10 steps, shifted
    theirs = ddim("epsilon", "leading")
    theirs.set_timesteps(10)
    assert theirs.timesteps.tolist() == [point.timestep for point in points[1::2]]
    while not leaping.done:
        advance([leaping], "epsilon", multistep=False)
    assert_same(leaping.latents, reference(theirs, noise(6)))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [4, 12])
def test_flow_euler_equals_diffusers(shift: float, num_steps: int) -> None:
    schedule = make_schedule(num_steps, "flow_euler", np.empty(0), flow_shift=shift)
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1.0 / num_steps, num_steps))
    np.testing.assert_allclose([p.timestep for p in schedule.points], theirs.timesteps, rtol=1e-6)
    trajectory, late = Trajectory(schedule.points, seed=7), Trajectory(schedule.points, seed=8)
    advance([late], "flow", multistep=False)
    while not trajectory.done:
        advance([trajectory] if late.done else [trajectory, late], "flow", multistep=False)
    assert_same(trajectory.latents, reference(theirs, noise(7)))


def test_dpmpp_on_flow_models_equals_diffusers_flow_sigmas() -> None:
    """The first flow level is all noise (alpha = 0), so that the log SNR there is infinite."""
    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, final_sigmas_type="zero"
    )
    theirs.set_timesteps(8)
    sigmas = theirs.sigmas[:-1].double().tolist()
    trajectory = Trajectory([noise_level(1000 * sigma, np.empty(0)) for sigma in sigmas], seed=9)
    latents = noise(9)
    for timestep, sigma in zip(theirs.timesteps, sigmas, strict=True):
        latents = theirs.step(network(latents, 1000 * sigma)[None], timestep, latents[None]).prev_sample[0]
    while not trajectory.done:
        advance([trajectory], "flow", multistep=True)
    assert_same(trajectory.latents, latents)
    assert extrapolation(NoiseLevel(1000.0, 0.0, 1.0), noise_level(700, np.empty(0)), CLEAN) == 0.0


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_ddim_with_noise_equals_diffusers(prediction_type: PredictionType, eta: float) -> None:
    schedule = make_schedule(10, "ddim", alphas())
    theirs = ddim(prediction_type, "leading")
    theirs.set_timesteps(10)
    expected = noise(1)
    trajectory, late = Trajectory(schedule.points, seed=1), Trajectory(schedule.points, seed=2)
    advance([late], prediction_type, multistep=False)
    for step, timestep in enumerate(theirs.timesteps[:-1]):
        fresh = noise(100 + step)
        prediction = network(expected, float(timestep))[None]
        expected = theirs.step(
            prediction, timestep, expected[None], eta=eta, variance_noise=fresh[None]
        ).prev_sample[0]
        moving = [trajectory] if late.done else [trajectory, late]
        sources = [t.levels[t.index] for t in moving]
        targets = [t.levels[t.index + 1] for t in moving]
        latents = torch.stack([t.latents for t in moving])
        predictions = torch.stack(
            [network(t.latents, s.timestep) for t, s in zip(moving, sources, strict=True)]
        )
        stepped = solver_step(
            latents,
            clean_prediction(predictions, latents, sources, prediction_type),
            sources,
            targets,
            noise_BCHW=torch.stack([fresh, noise(200 + step)][: len(moving)]),
            noise_scales=[ddim_noise(s, t, eta) for s, t in zip(sources, targets, strict=True)],
        )
        for row, moved in enumerate(moving):
            moved.latents, moved.index = stepped[row], moved.index + 1
        assert_same(trajectory.latents, expected)


def test_ddim_with_all_of_ddpms_noise_is_ancestral_euler() -> None:
    """What SDXL-Turbo is published with; its latents are ours over alpha."""
    theirs = EulerAncestralDiscreteScheduler(**SD, timestep_spacing="trailing")
    theirs.set_timesteps(4)
    points = make_schedule(4, "ddim", alphas(), spacing="trailing").points
    assert theirs.timesteps.tolist() == [point.timestep for point in points]
    latents, scaled = noise(1), noise(1) / points[0].alpha
    for step, (timestep, source, target) in enumerate(
        zip(theirs.timesteps, points, points[1:], strict=False)
    ):
        prediction = network(theirs.scale_model_input(scaled, timestep), float(timestep))
        own_noise, generator = torch.Generator().manual_seed(step), torch.Generator().manual_seed(step)
        scaled = theirs.step(prediction[None], timestep, scaled[None], generator=generator).prev_sample[0]
        clean = clean_prediction(network(latents, source.timestep)[None], latents[None], [source], "epsilon")
        latents = solver_step(
            latents[None],
            clean,
            [source],
            [target],
            noise_BCHW=torch.randn((1, *SHAPE), generator=own_noise),
            noise_scales=[ddim_noise(source, target, 1.0)],
        )[0]
        torch.testing.assert_close(latents, scaled * target.alpha, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("num_steps", [1, 4, 7])
def test_lcm_equals_diffusers(prediction_type: PredictionType, num_steps: int) -> None:
    theirs = LCMScheduler(**SD, prediction_type=prediction_type)
    theirs.set_timesteps(num_steps)
    points = make_schedule(num_steps, "lcm", alphas()).points
    assert theirs.timesteps.tolist() == [point.timestep for point in points]
    expected = latents = noise(3)
    for step, (timestep, source) in enumerate(zip(theirs.timesteps, points, strict=True)):
        output = theirs.step(
            network(expected, float(timestep))[None],
            timestep,
            expected[None],
            generator=torch.Generator().manual_seed(step),
        )
        prediction = network(latents, source.timestep)[None]
        clean = clean_prediction(prediction, latents[None], [source], prediction_type)
        clean = consistency_prediction(clean, latents[None], [source])
        assert_same(clean[0], output.denoised[0])
        if step + 1 == num_steps:
            break
        fresh = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(step))
        target = points[step + 1]
        latents = solver_step(
            latents[None], clean, [source], [target], noise_BCHW=fresh, noise_scales=[target.sigma]
        )[0]
        expected = output.prev_sample[0]
        assert_same(latents, expected)


def test_cfgpp_renoises_with_what_is_predicted_without_the_prompt() -> None:
    """Chung et al. 2024, algorithm 2, in float64: x_t = alpha_t x0 + sigma_t eps_null."""
    latents = torch.stack([noise(1), noise(2)]).double()
    clean, null_clean = torch.stack([noise(3), noise(4)]).double(), torch.stack([noise(5), noise(6)]).double()
    sources, targets = (
        [noise_level(900, alphas()), noise_level(300, alphas())],
        [noise_level(700, alphas())] * 2,
    )
    targets[1] = noise_level(100, alphas())
    stepped = solver_step(latents, clean, sources, targets, null_clean_BCHW=null_clean)
    eps_null = implied_noise(latents, null_clean, sources)
    torch.testing.assert_close(stepped, add_noise(clean, eps_null, targets), atol=1e-10, rtol=0)


@pytest.mark.parametrize("prediction_type", [*PREDICTIONS, "flow"])
def test_clean_prediction_recovers_what_was_noised(prediction_type: PredictionType) -> None:
    table = np.empty(0) if prediction_type == "flow" else alphas()
    clean, eps = torch.stack([noise(1), noise(2)]).double(), torch.stack([noise(3), noise(4)]).double()
    levels = [noise_level(900, table), noise_level(35, table)]
    noisy = add_noise(clean, eps, levels)
    targets = {
        "epsilon": eps,
        "v_prediction": torch.stack(
            [level.alpha * e - level.sigma * c for level, e, c in zip(levels, eps, clean, strict=True)]
        ),
        "flow": eps - clean,
    }
    recovered = clean_prediction(targets[prediction_type], noisy, levels, prediction_type)
    torch.testing.assert_close(recovered, clean, atol=1e-10, rtol=0)
    torch.testing.assert_close(implied_noise(noisy, clean, levels), eps, atol=1e-10, rtol=0)


def test_schedule_rejects_more_steps_than_the_model_has() -> None:
    with pytest.raises(UserError, match=r"engine.num_steps is 1000; accepted: 1 to 999"):
        make_schedule(1000, "ddim", alphas())


def test_schedule_rejects_more_steps_than_were_distilled() -> None:
    with pytest.raises(UserError, match=r"engine.num_steps is 51; accepted: 1 to 50"):
        make_schedule(51, "lcm", alphas())


def test_level_at_rounds_to_a_training_timestep() -> None:
    schedule: Schedule = make_schedule(10, "dpmpp", alphas())
    level = schedule.level_at(120.6)
    assert level.timestep == 121.0
    assert level.alpha**2 == pytest.approx(alphas()[121], abs=1e-12)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1.0, abs=1e-12)
