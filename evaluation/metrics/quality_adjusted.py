"""Quality-adjusted NFE: what a family of methods has to spend for the quality of DDIM-50.

Always true here: the target is the mean quality of the target method on the same prompts and seeds. A family
is one method at several budgets; two neighbouring budgets may be mixed, so its curve is the upper envelope
of its points. A family that does not reach the target has no such number, only the share of resamples
in which it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.front import Point, cost_to_reach, upper_envelope
from evaluation.rows import MethodTable
from evaluation.statistics import Floats, Resampling


@dataclass(frozen=True)
class QualityAdjusted:
    """The cost at which a family has the target's quality, in units of `axis`.

    value is None if it does not get there. high is None where more than 2.5% of the resamples never do: the
    upper end is then not known. reached is the share of resamples that do.
    """

    value: float | None
    low: float | None
    high: float | None
    reached: float
    target: float
    axis: str


def quality_adjusted(
    family: Sequence[MethodTable], target: MethodTable, resampling: Resampling, axis: str = "nfe"
) -> QualityAdjusted:
    """Where a family reaches the target's quality, with an interval that resamples prompts.

    axis: nfe, network_evals, cost or seconds. Quality and cost of all methods are resampled together.
    """
    assert family, "a family has at least one budget"
    wanted = target.mean("quality")
    points = [Point(table.name, table.mean(axis), table.mean("quality")) for table in family]
    value = cost_to_reach(upper_envelope(points), wanted)
    columns = [target.by_prompt("quality")]
    for table in family:
        columns += [table.by_prompt(axis), table.by_prompt("quality")]
    replicates_RK = resampling.means(np.stack(columns, axis=1))
    found_R = np.sort([_reached(row_K) for row_K in replicates_RK])
    last = len(found_R) - 1
    # Between a number and infinity nothing is interpolated.
    low, high = found_R[math.floor(0.025 * last)], found_R[math.ceil(0.975 * last)]
    return QualityAdjusted(
        value,
        float(low) if np.isfinite(low) else None,
        float(high) if np.isfinite(high) else None,
        float(np.isfinite(found_R).mean()),
        wanted,
        axis,
    )


def families(tables: Mapping[str, MethodTable]) -> dict[str, list[MethodTable]]:
    """Methods by what stands before the last hyphen of their names: ddim-20 and ddim-50 are of ddim.

    best-of-2@10 and best-of-3@10 are of best-of@10; a name without a number is a family of its own.
    """
    found: dict[str, list[MethodTable]] = {}
    for name, table in tables.items():
        head, _, tail = name.rpartition("-")
        budget, at, steps = tail.partition("@")
        family = f"{head}{at}{steps}" if head and budget.isdecimal() else name
        found.setdefault(family, []).append(table)
    return found


def _reached(row_K: Floats) -> float:
    points = [Point("", cost, quality) for cost, quality in zip(row_K[1::2], row_K[2::2], strict=True)]
    cost = cost_to_reach(upper_envelope(points), float(row_K[0]))
    return np.inf if cost is None else cost
