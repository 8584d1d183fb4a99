"""What a pipeline's scheduler says about the model: its noise schedule, prediction and timestep shift.

Always true here: the scheduler's steps are not used, the solvers are ours; what they cannot follow is
refused in one line.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from actors.contracts import PredictionType
from actors.errors import UserError

_UNSUPPORTED = (
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
)


def variance_preserving(scheduler: Any, identity: str) -> tuple[PredictionType, torch.Tensor]:
    """The prediction type, and alphas_cumprod in float64; UserError if it is another kind of schedule."""
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if alphas_cumprod is None:
        kind = type(scheduler).__name__
        raise UserError(f"backbone {identity} has a {kind}; accepted: a scheduler with alphas_cumprod")
    prediction = scheduler.config.prediction_type
    if prediction not in ("epsilon", "v_prediction"):
        raise UserError(f"backbone {identity} predicts {prediction!r}; accepted: epsilon, v_prediction")
    return cast(PredictionType, prediction), alphas_cumprod.double()


def flow_shift(scheduler: Any, tokens: int, identity: str) -> float:
    """The timestep shift s of `s * sigma / (1 + (s - 1) * sigma)` for an image of so many tokens.

    A fixed number, or where the scheduler shifts with the resolution (Esser et al. 2024, section 5.3.2),
    exp(mu) with mu linear in the number of tokens. Raises UserError for schedules of another form.
    """
    config = scheduler.config
    if "use_dynamic_shifting" not in config:
        kind = type(scheduler).__name__
        raise UserError(f"backbone {identity} has a {kind}; accepted: FlowMatchEulerDiscreteScheduler")
    for option in _UNSUPPORTED:
        if config.get(option):
            raise UserError(f"backbone {identity} has a scheduler with {option}; accepted: one without")
    if not config.use_dynamic_shifting:
        return float(config.shift)
    mu = calculate_shift(
        tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
    return float(mu) if config.get("time_shift_type") == "linear" else math.exp(mu)
