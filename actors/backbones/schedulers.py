"""diffusers' schedulers that take the engine's steps: for its stock pipelines beside ours.

Always true here: the model's own noise schedule and prediction type are kept; only how it is stepped through
is the engine's.
"""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)

from actors.episode import EngineConfig
from actors.errors import UserError

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "dpmpp": DPMSolverMultistepScheduler,
    "flow_euler": FlowMatchEulerDiscreteScheduler,
    "lcm": LCMScheduler,
}


def matching_scheduler(scheduler: Any, config: EngineConfig) -> Any:
    """The diffusers scheduler that takes the engine's steps, for the model that `scheduler` is of.

    Raises UserError for DPM-Solver++ on a flow model, whose steps diffusers spaces in another way.
    """
    options: dict[str, Any] = dict(scheduler.config)
    if config.solver == "flow_euler":
        if config.flow_shift is not None:
            options |= {"shift": config.flow_shift, "use_dynamic_shifting": False}
        return FlowMatchEulerDiscreteScheduler.from_config(options)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise UserError(
            f"engine.solver is {config.solver!r}; accepted beside a stock flow pipeline: flow_euler"
        )
    if config.solver == "lcm":
        return LCMScheduler.from_config(options)
    options["timestep_spacing"] = config.timestep_spacing or (
        "leading" if config.solver == "ddim" else "linspace"
    )
    options["steps_offset"] = 1
    options |= {"set_alpha_to_one": True} if config.solver == "ddim" else {"final_sigmas_type": "zero"}
    return SCHEDULERS[config.solver].from_config(options)
