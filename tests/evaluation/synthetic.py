"""Made-up evaluations with a known truth: rows of a policy and of baselines, without any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.contracts import EpisodeRequest
from evaluation.config import EvaluationConfig
from evaluation.rows import ImageRow, tabulate
from evaluation.summary import action_shares, compare

#: Name to NFE and mean quality. At 16 NFE their front stands at 0.636.
BASELINES = {"dpmpp-5": (5, 0.45), "dpmpp-10": (10, 0.60), "best-of-2@10": (20, 0.66), "ddim-50": (50, 0.65)}
ACTIONS = ("continue", "stop", "look", "restart", "leap-2", "refine")
LOOK_PRICE = 0.3


def requests(prompts_per_tier: int = 30, seeds: int = 3) -> list[EpisodeRequest]:
    return [
        EpisodeRequest(f"prompt {index} of tier {tier}", 1000 * index + seed, str(tier))
        for tier in (1, 2, 3, 4)
        for index in range(prompts_per_tier)
        for seed in range(seeds)
    ]


def row(method: str, request: EpisodeRequest, quality: float, nfe: int, **changed: Any) -> ImageRow:
    looks = changed.pop("looks", 0)
    actions = ("continue",) * max(nfe - 3, 1) + ("look",) * looks + ("stop",)
    return ImageRow(
        **{
            "method": method,
            "prompt": request.prompt,
            "tier": request.tier,
            "seed": request.seed,
            "quality": quality,
            "image_reward": 0.0,
            "nfe": nfe,
            "network_evals": 2 * nfe,
            "looks": looks,
            "attempts": 1,
            "cost": nfe + LOOK_PRICE * looks,
            "seconds": 0.01 * nfe,
            "actions": actions,
            **changed,
        }
    )


def baseline_rows(name: str, wanted: Sequence[EpisodeRequest], nfe: int, quality: float) -> list[ImageRow]:
    """What an image scores depends on its prompt, its noise, and the method's mean."""
    rng = np.random.default_rng(nfe)
    looks = 2 if name.startswith("best-of") else 0
    return [
        row(name, request, quality + _prompt_effect(request) + rng.normal(0, 0.03), nfe, looks=looks)
        for request in wanted
    ]


def policy_rows(
    wanted: Sequence[EpisodeRequest], quality: float, *, base_nfe: int = 10, follow: int = 2
) -> list[ImageRow]:
    """A policy that spends `follow` more NFE a tier, and looks once."""
    rng = np.random.default_rng(1)
    rows = []
    for request in wanted:
        nfe = base_nfe + follow * int(request.tier or 0) + (int(rng.integers(0, 3)) if follow else 0)
        level = quality + _prompt_effect(request) + rng.normal(0, 0.03)
        rows.append(row("policy", request, level, nfe, looks=1))
    return rows


def summarised(
    ours: Sequence[ImageRow],
    theirs: dict[str, list[ImageRow]],
    wanted: Sequence[EpisodeRequest],
    seeds: int,
) -> dict[str, Any]:
    """A whole summary of such rows; oracle baselines count as bounds."""
    config = EvaluationConfig(seeds=seeds, resamples=1_000)
    tables = {name: tabulate(name, rows, wanted) for name, rows in theirs.items()}
    return {
        **compare(
            tabulate("policy", ours, wanted),
            {name: table for name, table in tables.items() if not name.startswith("oracle")},
            {name: table for name, table in tables.items() if name.startswith("oracle")},
            [request.tier for request in wanted[::seeds]],
            config,
        ),
        "actions": action_shares(ours, ACTIONS),
        "seed": 0,
        "config": {
            "images": len(wanted),
            "quality": "strict score",
            "reused_images": 0,
            "evaluation": asdict(config),
        },
        "model_version": "3",
        "seconds_total": 12.5,
    }


def evaluation(
    quality: float, *, prompts_per_tier: int = 30, seeds: int = 3, base_nfe: int = 10, follow: int = 2
) -> tuple[dict[str, Any], list[ImageRow]]:
    """(summary, all rows) of a made-up evaluation with a policy of this mean quality."""
    wanted = requests(prompts_per_tier, seeds)
    ours = policy_rows(wanted, quality, base_nfe=base_nfe, follow=follow)
    theirs = {name: baseline_rows(name, wanted, nfe, level) for name, (nfe, level) in BASELINES.items()}
    summary = summarised(ours, theirs, wanted, seeds)
    return summary, [*ours, *(each for rows in theirs.values() for each in rows)]


def picture() -> NDArray[np.uint8]:
    """Some small picture."""
    return np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)


def _prompt_effect(request: EpisodeRequest) -> float:
    rng = np.random.default_rng(request.seed)
    return float(rng.normal(0, 0.05)) - 0.05 * int(request.tier or 0)
