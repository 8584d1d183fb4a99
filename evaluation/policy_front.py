"""Policies of one backbone side by side: each against the fixed front at its own cost, and their own front.

One policy is a point; what a user gets for more or less compute is the line through several, trained at
other prices or for other targets.

Always true here: all policies and baselines see the same prompts with the same noises. Policies under one
name are trainings of one variant; they are averaged, and none of them is chosen. The comparison of a name is
H2's, with the hardest fixed choice of the same mean cost; its p is corrected (Holm) for all names. What H2
cannot test, a policy that costs more than every fixed choice, is not tested here either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from actors.errors import UserError
from actors.files import written_aside
from evaluation import figures
from evaluation.bench import bench_recipe
from evaluation.config import EvaluationConfig
from evaluation.evaluate import (
    Recipe,
    baseline_methods,
    check_not_only_bounds,
    evaluation_requests,
    image_store,
    images_of,
)
from evaluation.headline import signed
from evaluation.hypotheses import ALPHA, equal_cost
from evaluation.methods import Method, PolicyMethod, read_policy
from evaluation.progress import Progress
from evaluation.rows import MethodTable, tabulate
from evaluation.statistics import Resampling, holm
from evaluation.summary import method_numbers
from evaluation.tables import Table, outcome_of, p_value

FRONT_FILE = "front.json"


def policy_front(
    named: Mapping[str, Sequence[Path]],
    runs_dir: Path,
    config: EvaluationConfig,
    progress: Progress | None = None,
    *,
    recipe: Recipe = bench_recipe,
) -> dict[str, Any]:
    """What every name's policies, in folders, reach and cost, and by how much they lead.

    Images are kept among `runs_dir`'s, where evaluations find them and leave theirs. Raises UserError for
    policies that cannot be compared with each other, and for what an evaluation raises it for.
    """
    policies = {
        name: [read_policy(folder, greedy=config.greedy, seed=config.seed) for folder in folders]
        for name, folders in named.items()
    }
    all_policies = [(name, policy) for name, group in policies.items() for policy in group]
    baselines = baseline_methods(all_policies[0][1], config)
    check_not_only_bounds(baselines, config)
    _check_comparable(all_policies, config)
    requests = evaluation_requests(config)
    open_bench = recipe(all_policies[0][1].trained.backbone, config)
    bench = open_bench()
    methods: list[Method] = [*(policy for _, policy in all_policies), *baselines]
    for method in methods:
        method.open(bench)  # whatever does not fit together is said before the first image
    made, _ = images_of(
        methods,
        requests,
        image_store(runs_dir, bench, config),
        open_bench if config.workers > 1 else lambda: bench,
        config,
        progress,
    )
    tables = [tabulate(method.name, rows, requests) for method, rows in zip(methods, made, strict=True)]
    groups: dict[str, list[MethodTable]] = {name: [] for name in named}
    for (name, _), table in zip(all_policies, tables, strict=False):
        groups[name].append(table)
    tiers_P = [request.tier for request in requests[:: config.seeds]]
    found = dict(zip((method.name for method in baselines), tables[len(all_policies) :], strict=True))
    bounds = {method.name for method in baselines if method.baseline.oracle}
    return {
        **compare_names(groups, found, bounds, tiers_P, config),
        "config": {
            "quality": bench.metric,
            "images": len(requests),
            "backbone": bench.backbone.identity,
            "policies": {name: [str(folder) for folder in folders] for name, folders in named.items()},
            "evaluation": asdict(config),
        },
    }


def compare_names(
    groups: Mapping[str, Sequence[MethodTable]],
    baselines: Mapping[str, MethodTable],
    bounds: set[str],
    tiers_P: Sequence[str | None],
    config: EvaluationConfig,
) -> dict[str, Any]:
    """The keys policies and baselines of a front; bounds are drawn and compared with nothing."""
    resampling = Resampling(
        len(tiers_P), config.resamples, config.seed, tuple(tier or "" for tier in tiers_P)
    )
    fixed = {name: table for name, table in baselines.items() if name not in bounds}
    policies: dict[str, dict[str, Any]] = {}
    for name, trainings in groups.items():
        together = _together(name, trainings)
        lead = equal_cost(together, fixed, resampling)
        policies[name] = {
            **method_numbers(together, tiers_P, resampling),
            "trainings": [
                {"quality": one.mean("quality"), "nfe": one.mean("nfe"), "cost": one.mean("cost")}
                for one in trainings
            ],
            "lead": {key: lead[key] for key in ("estimate", "ci95", "p", "against", "axis")},
            "fixed_needs": lead["front_needs"]["cost"],
            "passed": lead["passed"],
        }
    adjusted = holm([one["lead"]["p"] for one in policies.values()])
    for one, p_holm in zip(policies.values(), adjusted, strict=True):
        one["lead"]["p_holm"] = p_holm
        one["passed"] = one["passed"] and bool(p_holm < ALPHA)
    return {
        "policies": policies,
        "baselines": {
            name: {**method_numbers(table, tiers_P, resampling), "bound": name in bounds}
            for name, table in baselines.items()
        },
    }


def write_front(front: Mapping[str, Any], folder: Path) -> Path:
    """front.json, .md, .tex, .svg and .png in `folder`; gives the picture."""
    table = front_table(front)
    picture = figures.pareto(front["baselines"], front["policies"], front["config"]["quality"], "cost")
    contents = {
        "front.md": table.markdown().encode(),
        "front.tex": table.latex().encode(),
        "front.svg": picture.svg.encode(),
        "front.png": picture.png,
        FRONT_FILE: (json.dumps(front, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    for name, content in contents.items():
        with written_aside(folder / name) as aside:
            aside.write_bytes(content)
    return folder / "front.png"


def front_table(front: Mapping[str, Any]) -> Table:
    """The policies, then the fixed choices, each from the cheapest to the dearest."""
    rows = []
    for name, one in _by_cost(front["policies"]):
        lead, needs = one["lead"], one["fixed_needs"]
        rows.append(
            (
                name,
                str(len(one["trainings"])),
                *_numbers(one),
                "out of reach" if needs is None else f"{needs:.1f}",
                signed(lead["estimate"]),
                f"{signed(lead['ci95'][0])} to {signed(lead['ci95'][1])}",
                p_value(lead["p_holm"]),
                outcome_of(one["passed"]),
            )
        )
    for name, one in _by_cost(front["baselines"]):
        rows.append((f"{name} (bound)" if one["bound"] else name, "", *_numbers(one), "", "", "", "", ""))
    header = (
        "method",
        "trainings",
        "quality",
        "95%",
        "NFE",
        "cost",
        "seconds",
        "fixed need",
        "lead",
        "95%",
        "p (Holm)",
        "better",
    )
    config = front["config"]
    return Table(
        f"Quality ({config['quality']}) at each policy’s own cost, {config['images']} images a "
        "training and method",
        header,
        rows,
    )


def front_sentence(front: Mapping[str, Any]) -> str:
    """How many of the policies are better than what fixed schedules reach at their costs."""
    policies = front["policies"].values()
    better = sum(one["passed"] is True for one in policies)
    costs = [one["cost"] for one in policies]
    span = f"{min(costs):.1f} to {max(costs):.1f}" if len(costs) > 1 else f"{costs[0]:.1f}"
    return (
        f"{better} of {len(costs)} policies are shown to be better than every fixed choice of their own "
        f"cost, {span} NFE an image with looks at their price."
    )


def _check_comparable(policies: Sequence[tuple[str, PolicyMethod]], config: EvaluationConfig) -> None:
    """One backbone, and the same fixed choices: those take guidance and the price of a look from a policy."""
    (first_name, first), *others = policies
    fixed = [method.key for method in baseline_methods(first, config)]
    for name, policy in others:
        if policy.trained.backbone != first.trained.backbone:
            raise UserError(f"{name}: trained on another backbone than {first_name}; compare them apart")
        if [method.key for method in baseline_methods(policy, config)] != fixed:
            raise UserError(
                f"{name}: other guidance, price of a look or refinement than {first_name}, so that fixed "
                "choices would be others too; compare them apart"
            )


def _together(name: str, trainings: Sequence[MethodTable]) -> MethodTable:
    """Trainings as one method whose seeds are all of theirs."""
    columns = ("quality", "nfe", "network_evals", "looks", "cost", "seconds")
    stacked = {
        f"{one}_PS": np.hstack([getattr(table, f"{one}_PS") for table in trainings]) for one in columns
    }
    return MethodTable(name, **stacked)


def _by_cost(methods: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return sorted(methods.items(), key=lambda item: (item[1].get("bound", False), item[1]["cost"]))


def _numbers(one: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = one["ci95"]
    costs = (f"{one['nfe']:.2f}", f"{one['cost']:.2f}", f"{one['seconds']:.3f}")
    return f"{one['quality']:.3f}", f"{low:.3f} to {high:.3f}", *costs
