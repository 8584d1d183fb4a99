"""Sweeps whose outcomes are written down instead of trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tune_configs.ledger import Outcome
from tune_configs.objective import Measured
from tune_configs.plan import TrialSpec
from tune_configs.sweep_files import Sweep, as_sweep


def sweep_of(variants: Sequence[str], **changes: Any) -> Sweep:
    """A sweep of these variants, the first of which is the reference."""
    content = {
        "description": "Written down.",
        "variants": {name: [f"ppo.lr={index + 1}e-4"] for index, name in enumerate(variants)},
        "reference": variants[0],
        "seeds": [0, 1],
        "judge": {"resamples": 2000},
    }
    return as_sweep("sweep", "told", content | changes)


def spec_of(variant: str, seed: int = 0, *more: str, **values: float) -> TrialSpec:
    labels = tuple(f"told/{name}" for name in (variant, *more))
    return TrialSpec(
        f"told-{variant}-s{seed}", labels, seed, (f"seed={seed}",), dict(values), variant + str(seed)
    )


def finished(spec: TrialSpec, quality: Sequence[float], cost: Sequence[float], *, noises: int = 1) -> Outcome:
    prompts = len(quality) // noises
    measured = Measured(tuple(quality), tuple(cost), tuple(cost), (None,) * prompts)
    return Outcome(spec, "finished", iterations=8, seconds=12.0, ended="finished", measured=measured)
