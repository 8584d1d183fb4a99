"""The numbers of summary.json, from tables of images.

Always true here: pure; the same tables give the same summary, bit for bit. Means are over prompts of means
over seeds. `baselines` holds bounds too, marked `bound`, and neither hypotheses nor differences use those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.config import EvaluationConfig
from evaluation.hypotheses import (
    H1_REFERENCES,
    cost_follows_prompt,
    equal_cost,
    equal_quality,
    refinement_beats_steps,
    tier_order,
)
from evaluation.metrics.quality_adjusted import families, quality_adjusted
from evaluation.power import detectable_difference, variation_of
from evaluation.rows import ImageRow, MethodTable
from evaluation.statistics import Resampling, holm

SUMMARY_FILE = Path("summary.json")

SUMMARY_KEYS = (
    "policy",
    "baselines",
    "hypotheses",
    "quality_adjusted",
    "actions",
    "seed",
    "config",
    "model_version",
    "seconds_total",
)


def compare(
    policy: MethodTable,
    baselines: Mapping[str, MethodTable],
    bounds: Mapping[str, MethodTable],
    tiers_P: Sequence[str | None],
    config: EvaluationConfig,
) -> dict[str, Any]:
    """The keys policy, baselines, hypotheses and quality_adjusted of a summary."""
    assert baselines, "nothing to compare the policy with"
    strata = tuple(tier or "" for tier in tiers_P)
    resampling = Resampling(len(tiers_P), config.resamples, config.seed, strata)
    numbers = {
        name: {**method_numbers(table, tiers_P, resampling), "bound": name in bounds}
        for name, table in {**baselines, **bounds}.items()
    }
    differences = {
        name: resampling.mean(policy.by_prompt("quality") - table.by_prompt("quality"))
        for name, table in baselines.items()
    }
    adjusted = holm([difference.p for difference in differences.values()])
    for (name, difference), p_holm in zip(differences.items(), adjusted, strict=True):
        numbers[name]["difference"] = {
            "estimate": difference.value,
            "ci95": difference.ci95,
            "p": difference.p,
            "p_holm": p_holm,
            "detectable": _detectable(policy, baselines[name]),
        }
    return {
        "policy": {**method_numbers(policy, tiers_P, resampling), "nfe_sd": float(policy.nfe_PS.std())},
        "baselines": numbers,
        "hypotheses": {
            "H1": equal_quality(policy, baselines, resampling, config.margin, config.nfe_limit),
            "H2": equal_cost(policy, baselines, resampling),
            "H3": cost_follows_prompt(policy, baselines, resampling, tiers_P),
            "H4": refinement_beats_steps(baselines, resampling),
        },
        "quality_adjusted": _quality_adjusted(policy, baselines, resampling),
    }


def action_shares(rows: Iterable[ImageRow], action_names: Sequence[str]) -> dict[str, float]:
    """Each action's share of all decisions; every action the policy could take is listed."""
    counts = Counter(action for row in rows for action in row.actions)
    total = counts.total()
    return {name: counts[name] / total if total else 0.0 for name in action_names}


def _detectable(policy: MethodTable, baseline: MethodTable) -> float:
    """The smallest true difference of the two that so many prompts and seeds show with 80% power."""
    differences_PS = policy.quality_PS - baseline.quality_PS
    return detectable_difference(variation_of(differences_PS), *differences_PS.shape)


def _quality_adjusted(
    policy: MethodTable, baselines: Mapping[str, MethodTable], resampling: Resampling
) -> dict[str, dict[str, Any]]:
    """By family: what it spends for the quality of the long schedule; empty where that was not run."""
    target = next((name for name in H1_REFERENCES if name in baselines), None)
    if target is None:
        return {}
    found = families({policy.name: policy, **baselines})
    return {
        name: asdict(quality_adjusted(family, baselines[target], resampling, axis="cost"))
        for name, family in found.items()
    }


def method_numbers(
    table: MethodTable, tiers_P: Sequence[str | None], resampling: Resampling
) -> dict[str, Any]:
    """Quality with its interval, what an image costs in each unit, and both by tier."""
    quality = resampling.mean(table.by_prompt("quality"))
    return {
        "quality": quality.value,
        "ci95": quality.ci95,
        **{name: table.mean(name) for name in ("nfe", "network_evals", "looks", "cost", "seconds")},
        "per_tier": {tier: _tier(table, tiers_P, tier, resampling) for tier in tier_order(tiers_P)},
    }


def _tier(
    table: MethodTable, tiers_P: Sequence[str | None], tier: str, resampling: Resampling
) -> dict[str, Any]:
    inside_P = np.array([each == tier for each in tiers_P])
    quality_P = table.by_prompt("quality")[inside_P]
    within = Resampling(len(quality_P), resampling.resamples, resampling.seed) if len(quality_P) > 1 else None
    return {
        "quality": float(quality_P.mean()),
        "ci95": within.mean(quality_P).ci95 if within else None,
        "nfe": float(table.by_prompt("nfe")[inside_P].mean()),
        "cost": float(table.by_prompt("cost")[inside_P].mean()),
        "prompts": int(inside_P.sum()),
    }
