"""Zero-shot transfer: a policy on solvers, backbones and prompts that it was not trained with.

Always true here: nothing is trained; every cell is an evaluation of its own, with that solver's own fixed
schedules, and the evaluation's best-of-N, on the same prompts and noises, so that a cell says whether the
policy is still worth having there and not whether the place is easier. A cell that cannot be is in the table
with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.engine import EngineConfig
from actors.errors import UserError
from actors.files import written_aside
from actors.policy_folder import TrainedPolicy, read_trained_policy
from actors.schedule import SolverName
from evaluation.baselines.names import OWN_FAMILY, check_baselines, parse_baseline
from evaluation.bench import bench_recipe
from evaluation.config import EvaluationConfig
from evaluation.evaluate import Conditions, Recipe, evaluate
from evaluation.rows import IMAGES_FILE, ImageRow, read_rows
from evaluation.statistics import Resampling
from evaluation.tables import Table, outcome_of

TRANSFER_FILE = Path("evaluation/transfer.json")
"""Where a run keeps its transfer matrix."""
TRANSFER_FOLDER = Path("evaluation/transfer")
_STEPS = (5, 7, 10, 15, 20)
LONG = 50
SHARE = 0.95
"""Of the long schedule's CLIP score: what a policy should keep where it was not trained."""


@dataclass(frozen=True, slots=True)
class TransferCell:
    """One place. failed: why there are no numbers.

    own_backbone: whether its weights are those that the policy was trained with, under whatever name. lead:
    of the policy over what costs as much there (H2), with its interval; clip_ratio: of its CLIP score to the
    long schedule's, with its interval; clip_p: the one-sided p of that being below SHARE.
    """

    backbone: str
    solver: str
    dataset: str
    own_backbone: bool
    quality: float | None = None
    nfe: float | None = None
    cost: float | None = None
    lead: tuple[float, float, float] | None = None
    passed: bool | None = None
    clip_ratio: tuple[float, float, float] | None = None
    clip_p: float | None = None
    failed: str | None = None


def transfer(
    policy_dir: Path,
    run_dir: Path,
    config: EvaluationConfig,
    *,
    backbones: Sequence[str],
    solvers: Sequence[tuple[SolverName, int]],
    datasets: Sequence[str],
    progress: Callable[[str], None] = lambda cell: None,
    recipe: Recipe = bench_recipe,
) -> list[TransferCell]:
    """Every combination; "" as a backbone is the policy's own. Writes TRANSFER_FILE and returns its cells."""
    trained = read_trained_policy(policy_dir)
    cells = []
    for backbone in backbones:
        for solver, steps in solvers:
            for dataset in datasets:
                name = backbone or trained.backbone.name
                same_name = name == trained.backbone.name
                cell = TransferCell(name, f"{solver}-{steps}", dataset, own_backbone=same_name)
                progress(f"{name}, {cell.solver}, {dataset}")
                other = replace(trained.backbone, name=backbone) if backbone else None
                conditions = Conditions(solver, steps, other)
                cells.append(_measure(cell, trained, run_dir, config, conditions, recipe))
    with written_aside(run_dir / TRANSFER_FILE) as aside:
        aside.write_text(json.dumps([asdict(cell) for cell in cells], indent=2), encoding="utf-8")
    return cells


def read_transfer(run_dir: Path) -> list[TransferCell]:
    """The cells that `transfer` wrote; none if it was not run. UserError for a damaged file."""
    path = run_dir / TRANSFER_FILE
    if not path.exists():
        return []
    try:
        cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for cell in cells:
            cell.update({key: tuple(value) for key, value in cell.items() if isinstance(value, list)})
        return [TransferCell(**cell) for cell in cells]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a transfer matrix; run `addiffusion transfer` again") from error


def transfer_table(cells: Iterable[TransferCell]) -> Table:
    """One line a cell."""
    header = ("backbone", "solver", "prompts", "quality", "NFE", "cost", "lead at equal cost", "95%", "H2")
    rows = []
    for cell in cells:
        name = cell.backbone + (" (own)" if cell.own_backbone else "")
        if cell.lead is None:
            rows.append(
                (name, cell.solver, cell.dataset, "", "", "", "", cell.failed or "", outcome_of(None))
            )
            continue
        value, low, high = cell.lead
        rows.append(
            (
                name,
                cell.solver,
                cell.dataset,
                f"{cell.quality:.3f}",
                f"{cell.nfe:.1f}",
                f"{cell.cost:.1f}",
                f"{value:+.3f}",
                f"{low:+.3f} to {high:+.3f}",
                outcome_of(cell.passed),
            )
        )
    return Table("Zero-shot transfer", header, rows)


def places(text: str, engine: EngineConfig) -> list[tuple[SolverName, int]]:
    """What `--solvers` says: SOLVER or SOLVER-N, N by default the policy's. UserError for another."""
    found: list[tuple[SolverName, int]] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"(ddim|dpmpp|flow_euler|lcm)(?:-(\d{1,4}))?", part)
        if match is None or match[2] == "0":
            raise UserError(f"--solvers={part!r}: give ddim, dpmpp, flow_euler or lcm, with -N for N steps")
        solver: SolverName = match[1]  # type: ignore[assignment]
        found.append((solver, int(match[2] or engine.num_steps)))
    return found or [(engine.solver, engine.num_steps)]


def _measure(
    cell: TransferCell,
    trained: TrainedPolicy,
    run_dir: Path,
    config: EvaluationConfig,
    conditions: Conditions,
    recipe: Recipe,
) -> TransferCell:
    assert conditions.solver is not None
    family = OWN_FAMILY[conditions.solver]
    tries = [name for name in config.baselines if parse_baseline(name).family == "best-of"]
    names = (*(f"{family}-{steps}" for steps in (*_STEPS, LONG)), *tries)
    folder = re.sub(r"[^\w.-]+", "_", f"{cell.backbone}-{cell.solver}-{cell.dataset}")
    try:
        here = replace(config, prompts=cell.dataset, baselines=names, strips=0, traced=0)
        check_baselines(names, EngineConfig(solver=conditions.solver))
        summary = evaluate(
            Path(trained.folder),
            run_dir / TRANSFER_FOLDER / folder,
            here,
            recipe=recipe,
            conditions=conditions,
        )
    except UserError as error:
        return replace(cell, failed=str(error))
    h2 = summary["hypotheses"]["H2"]
    rows = read_rows(run_dir / TRANSFER_FOLDER / folder / IMAGES_FILE)
    ratio, p = _clip_ratio(rows, f"{family}-{LONG}", here) or (None, None)
    return replace(
        cell,
        own_backbone=trained.has_weights(summary["config"]["backbone"]),
        quality=summary["policy"]["quality"],
        nfe=summary["policy"]["nfe"],
        cost=summary["policy"]["cost"],
        lead=(h2["estimate"], *h2["ci95"]),
        passed=h2["passed"],
        clip_ratio=ratio,
        clip_p=p,
    )


def _clip_ratio(
    rows: Sequence[ImageRow], long: str, config: EvaluationConfig
) -> tuple[tuple[float, float, float], float] | None:
    """The policy's mean CLIP score over the long schedule's, and the p of that being below SHARE.

    None where the scorers have no CLIP. The ratio is at least SHARE where ours less that share of theirs is
    at least 0, as scores are positive.
    """
    columns: dict[str, dict[str, list[float]]] = {"policy": {}, long: {}}
    tiers: dict[str, str] = {}
    for row in rows:
        if row.method in columns:
            if row.clip_score is None:
                return None
            columns[row.method].setdefault(row.prompt, []).append(row.clip_score)
            tiers[row.prompt] = row.tier or ""
    means_P2 = np.array([[np.mean(columns[name][prompt]) for name in columns] for prompt in tiers])
    ours, theirs = means_P2.mean(0)
    resampling = Resampling(len(tiers), config.resamples, config.seed, tuple(tiers.values()))
    replicates_R2 = resampling.means(means_P2)
    ratio = resampling.estimate(float(ours / theirs), replicates_R2[:, 0] / replicates_R2[:, 1])
    kept = resampling.non_inferiority(means_P2[:, 0] - SHARE * means_P2[:, 1], margin=0.0)
    return (ratio.value, ratio.low, ratio.high), kept.p
