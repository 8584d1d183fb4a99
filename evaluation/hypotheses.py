"""H1 to H4, decided by fixed rules from the measured images.

Always true here: where a hypothesis can be tested in more than one way, it passes only if it passes in all,
and the numbers it is reported with are those of the hardest. What cannot be tested is None, never True.
Bounds (oracle baselines) are nobody's alternative and are compared with nothing.

H1  Quality of 50 steps at a mean of at most 30 NFE: not inferior to DDIM-50 within a margin.
H2  Better than every fixed baseline at the policy's own mean cost.
H3  Cost follows the prompt: it rises with the prompt's tier and with its measured difficulty.
H4  Refinement beats the same compute spent on more steps: fixed schedules, one refined once and one longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.front import (
    COST_TOLERANCE,
    Point,
    best_within,
    cost_to_reach,
    envelope_weights,
    upper_envelope,
)
from evaluation.rows import MethodTable
from evaluation.statistics import Estimate, Resampling

Floats = NDArray[np.float64]

ALPHA = 0.05
FEWEST_PROMPTS = 20
"""With fewer, percentile intervals are too narrow to say that anything was shown: four prompts that all gain
look certain to a bootstrap, and are one throw of four coins in sixteen."""
H1_REFERENCES = {"ddim-50": "DDIM-50", "euler-50": "Euler-50"}
"""The long plain schedule that H1 compares with, of diffusion models and of flow models."""


def equal_quality(
    policy: MethodTable,
    baselines: Mapping[str, MethodTable],
    resampling: Resampling,
    margin: float,
    nfe_limit: float,
) -> dict[str, Any]:
    """H1, against DDIM-50, or Euler-50 for flow models.

    p is the one-sided one of being worse by more than the margin, tested at 2.5%; the
    interval is the two-sided one of the difference, whose lower end says the same.
    """
    against = next((name for name in H1_REFERENCES if name in baselines), None)
    label = H1_REFERENCES[against or "ddim-50"]
    statement = (
        f"At a mean of at most {nfe_limit:g} NFE, quality is not more than {margin:g} below {label}’s."
    )
    if against is None:
        return _untested(statement, f"neither {' nor '.join(H1_REFERENCES)} was run")
    reference = baselines[against]
    shown = resampling.non_inferiority(policy.by_prompt("quality") - reference.by_prompt("quality"), margin)
    nfe = resampling.mean(policy.by_prompt("nfe"))
    return {
        **_numbers(shown.difference),
        "p": shown.p,
        "passed": resampling.num_prompts >= FEWEST_PROMPTS and shown.passed and nfe.value <= nfe_limit,
        "statement": statement,
        "against": against,
        "margin": margin,
        "nfe": nfe.value,
        "nfe_ci95": nfe.ci95,
        "nfe_limit": nfe_limit,
    }


def equal_cost(
    policy: MethodTable, baselines: Mapping[str, MethodTable], resampling: Resampling
) -> dict[str, Any]:
    """H2, against the best baseline that costs no more and against the front, without and with looks.

    Where the policy costs more than every baseline, nobody knows what these would be at its cost: a lead over
    them is then no pass, and being no better than they are is a failure all the same.
    """
    comparisons = [
        comparison
        for axis in ("nfe", "cost")
        for comparison in _at_own_cost(policy, baselines, resampling, axis)
    ]
    hardest = min(comparisons, key=lambda comparison: (comparison["ci95"][0], comparison["estimate"]))
    passed: bool | None = resampling.num_prompts >= FEWEST_PROMPTS and all(
        one["estimate"] > 0 and one["p"] < ALPHA for one in comparisons
    )
    statement = "At its own mean cost, quality is above every fixed baseline and every mixture of two."
    dearest = {axis: max(table.mean(axis) for table in baselines.values()) for axis in ("nfe", "cost")}
    beyond = [axis for axis, most in dearest.items() if most < policy.mean(axis) - COST_TOLERANCE]
    if passed and beyond:
        axis = beyond[0]
        passed = None
        statement += (
            f" Not tested: the policy spends {policy.mean(axis):.1f} NFE{' with looks' * (axis == 'cost')},"
            f" the dearest baseline {dearest[axis]:.1f}; add one that spends as much to evaluation.baselines."
        )
    return {
        **{key: hardest[key] for key in ("estimate", "ci95", "p")},
        "passed": passed,
        "statement": statement,
        "against": hardest["against"],
        "axis": hardest["axis"],
        "comparisons": comparisons,
        "front_needs": {
            axis: cost_to_reach(upper_envelope(_points(baselines, axis)), policy.mean("quality"))
            for axis in ("nfe", "cost")
        },
    }


def cost_follows_prompt(
    policy: MethodTable,
    baselines: Mapping[str, MethodTable],
    resampling: Resampling,
    tiers_P: Sequence[str | None],
) -> dict[str, Any]:
    """H3: Spearman of a prompt's mean NFE with its difficulty for the baselines, and with a numbered tier.

    Images of one seed begin with the same noise for every method, and noise that goes wrong for baselines
    goes wrong for the policy, which then spends more: that is no property of the prompt. So the NFE of one
    seed is compared with the difficulty at the prompt's other seeds, and with one seed a prompt there is
    none. Tiers that are names (a benchmark's tasks) are groups without an order, so nothing can follow them.
    """
    statement = "NFE rises with the prompt’s tier and with its difficulty (rank correlation above 0)."
    correlations: dict[str, Estimate] = {}
    difficulty_PS = -np.mean([table.quality_PS for table in baselines.values()], axis=0)
    if (seeds := difficulty_PS.shape[1]) > 1:
        at_others_PS = (difficulty_PS.sum(1, keepdims=True) - difficulty_PS) / (seeds - 1)
        correlations["difficulty"] = resampling.spearman(policy.nfe_PS, at_others_PS)
    levels = tier_order(tiers_P)
    if len(levels) > 1 and all(level.isdecimal() for level in levels):
        tier_P = np.array([levels.index(tier) for tier in tiers_P if tier is not None], dtype=np.float64)
        correlations["tier"] = resampling.spearman(policy.by_prompt("nfe"), tier_P)
    if not correlations:
        return _untested(statement, "prompts have no numbered tier, and one seed each shows no difficulty")
    hardest = min(correlations, key=lambda name: correlations[name].low)
    return {
        **_numbers(correlations[hardest]),
        "passed": resampling.num_prompts >= FEWEST_PROMPTS
        and all(correlation.low > 0 for correlation in correlations.values()),
        "statement": statement,
        "against": hardest,
        "correlations": {name: _numbers(correlation) for name, correlation in correlations.items()},
    }


def refinement_beats_steps(baselines: Mapping[str, MethodTable], resampling: Resampling) -> dict[str, Any]:
    """H4: every `refine@N` against the longest DPM-Solver++ schedule of as many NFE, or less than 1 fewer."""
    statement = "Refining once is better than the same number of denoiser calls spent on more steps."
    comparisons = []
    for name, table in baselines.items():
        spent = table.mean("nfe")
        affordable = {
            other: each.mean("nfe")
            for other, each in baselines.items()
            if other.startswith("dpmpp-") and spent - 1 < each.mean("nfe") <= spent + COST_TOLERANCE
        }
        if name.startswith("refine@") and affordable:
            against = max(affordable, key=lambda other: affordable[other])
            lead = resampling.mean(table.by_prompt("quality") - baselines[against].by_prompt("quality"))
            comparisons.append({"refined": name, "against": against, "nfe": spent, **_numbers(lead)})
    if not comparisons:
        return _untested(statement, "no pair such as refine@7 and dpmpp-9 was run")
    hardest = min(comparisons, key=lambda comparison: comparison["ci95"][0])
    return {
        **{key: hardest[key] for key in ("estimate", "ci95", "p", "against", "refined")},
        "passed": resampling.num_prompts >= FEWEST_PROMPTS
        and all(one["estimate"] > 0 and one["p"] < ALPHA for one in comparisons),
        "statement": statement,
        "comparisons": comparisons,
    }


def tier_order(tiers_P: Sequence[str | None]) -> list[str]:
    """Tiers in order: numbers, as `shapes` has them, from simple to complex, then names; [] without tiers."""
    if any(tier is None for tier in tiers_P):
        return []
    distinct = {tier for tier in tiers_P if tier is not None}
    return sorted(
        distinct, key=lambda tier: (not tier.isdecimal(), int(tier) if tier.isdecimal() else 0, tier)
    )


def _at_own_cost(
    policy: MethodTable, baselines: Mapping[str, MethodTable], resampling: Resampling, axis: str
) -> list[dict[str, Any]]:
    """The policy's advantage over the best single baseline and over the front, at its own mean cost.

    Which baselines are compared with is read off all the data, once. That flatters them (the best of many
    measured means is too high), and leaves an ordinary paired difference. The policy's cost, and with it the
    place on the front, is resampled together with the qualities.
    """
    points = _points(baselines, axis)
    vertices = upper_envelope(points)
    within = best_within(points, policy.mean(axis))
    compared = [within.name, *(vertex.name for vertex in vertices)]
    columns = [policy.by_prompt("quality"), policy.by_prompt(axis)]
    columns += [baselines[name].by_prompt("quality") for name in compared]
    replicates_RK = resampling.means(np.stack(columns, axis=1))
    quality_R, cost_R, within_R, vertices_RV = *replicates_RK[:, :3].T, replicates_RK[:, 3:]
    front_R = (envelope_weights(vertices, cost_R) * vertices_RV).sum(1)
    mixture_V = envelope_weights(vertices, [policy.mean(axis)])[0]
    front = float(mixture_V @ [vertex.quality for vertex in vertices])
    mixture = " + ".join(
        f"{share:.0%} {vertex.name}" if share < 1 else vertex.name
        for share, vertex in zip(mixture_V, vertices, strict=True)
        if share > 0
    )
    quality = policy.mean("quality")
    leads = {
        within.name: resampling.estimate(quality - within.quality, quality_R - within_R),
        mixture: resampling.estimate(quality - front, quality_R - front_R),
    }
    return [{"axis": axis, "against": name, **_numbers(lead)} for name, lead in leads.items()]


def _points(baselines: Mapping[str, MethodTable], axis: str) -> list[Point]:
    return [Point(name, table.mean(axis), table.mean("quality")) for name, table in baselines.items()]


def _numbers(result: Estimate) -> dict[str, Any]:
    return {"estimate": result.value, "ci95": result.ci95, "p": result.p}


def _untested(statement: str, reason: str) -> dict[str, Any]:
    unknown = dict.fromkeys(("estimate", "ci95", "p", "passed"))
    return {**unknown, "statement": f"{statement} Not tested: {reason}."}
