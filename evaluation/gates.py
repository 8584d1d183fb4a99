"""The gates G0 to G4 and the hypotheses H1 to H4 of a run: the numbers, the outcome, what to do next.

Always true here: everything is read from the run's folder; what is not there is "not measured", never passed.
A gate that the plan put in terms of an A100 is judged on the machine that the run was on, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.headline import DEGENERATE_SHARE, signed
from evaluation.hypotheses import ALPHA, FEWEST_PROMPTS, H1_REFERENCES
from evaluation.rows import IMAGES_FILE, ImageRow, read_rows
from evaluation.run_files import PROGRESS_FILE, read_summary, training_rows
from evaluation.statistics import NON_INFERIORITY_ALPHA, Estimate, Resampling, holm
from evaluation.tables import Table, outcome_of
from evaluation.transfer import TransferCell, read_transfer

MEMORY_GIB = 35.0
ITERATION_EPISODES, ITERATION_SECONDS = 64, 600.0
CLOSE_NFE, FAR_NFE = 35.0, 40.0
"""Mean NFE up to which H1 was nearly reached, and from which it is far."""
G2_METRICS = ("quality", "image_reward", "clip_score")


@dataclass(frozen=True, slots=True)
class Gate:
    """One line: what was asked, the number and its interval, the outcome (None: not measured), what next."""

    name: str
    statement: str
    number: str
    interval: str
    passed: bool | None
    next_step: str


def gates(run_dir: Path) -> list[Gate]:
    """G0 to G4 and H1 to H4; UserError where the run was not evaluated."""
    summary = read_summary(run_dir)
    rows = read_rows(run_dir / IMAGES_FILE)
    training = training_rows(run_dir / PROGRESS_FILE)
    return [
        memory_gate(summary),
        training_gate(training),
        better_than_ddim_20(rows, summary),
        quality_at_nfe(summary),
        transfer_gate(read_transfer(run_dir)),
        *(hypothesis(name, one) for name, one in summary["hypotheses"].items()),
    ]


def gates_table(found: Sequence[Gate]) -> Table:
    """As a table."""
    rows = [
        (gate.name, gate.statement, gate.number, gate.interval, outcome_of(gate.passed), gate.next_step)
        for gate in found
    ]
    return Table("Gates and hypotheses", ("", "what", "number", "95%", "outcome", "next"), rows)


def memory_gate(summary: Mapping[str, Any]) -> Gate:
    """G0: the backbone and all metric models in one process's GPU memory."""
    statement = f"backbone and all metric models within {MEMORY_GIB:g} GiB"
    peak = summary["config"].get("peak_gpu_gib")
    if peak is None:
        return Gate(
            "G0",
            statement,
            "",
            "",
            None,
            "evaluate on a GPU: evaluation.device=cuda evaluation.workers=1; "
            "`addiffusion doctor --gpu a100-40` calculates it before",
        )
    passed = peak <= MEMORY_GIB
    next_step = "go on" if passed else "serialise the metric models (rewards=per_scorer), or dtype=bfloat16"
    return Gate("G0", statement, f"{peak:.1f} GiB", "", passed, next_step)


def training_gate(training: Sequence[Mapping[str, Any]]) -> Gate:
    """G1: the value loss falls, no action takes all decisions, and an iteration is fast enough."""
    statement = (
        f"loss falls, actions not degenerate, {ITERATION_EPISODES} episodes in {ITERATION_SECONDS / 60:g} min"
    )
    losses = [row["value_loss"] for row in training if isinstance(row.get("value_loss"), int | float)]
    part = max(1, len(losses) // 5)
    if len(losses) < 2:
        return Gate("G1", statement, "", "", None, "train: progress.jsonl has fewer than two iterations")
    first, last = float(np.mean(losses[:part])), float(np.mean(losses[-part:]))
    shares: dict[str, float] = {}
    for row in training[-part:]:
        for name, share in row["actions"].items():
            shares[name] = shares.get(name, 0.0) + share / part
    top = max(shares, key=lambda name: shares[name])
    seconds = float(np.median([ITERATION_EPISODES * row["seconds"] / row["episodes"] for row in training]))
    wrong = {
        "lower the learning rate (ppo.lr), or scale the reward": last >= first,
        "degenerate: raise ppo.entropy_start, or offline RL on stored episodes": shares[top]
        > DEGENERATE_SHARE,
        "too slow: more env runners, or fewer scored previews": seconds > ITERATION_SECONDS,
    }
    number = f"loss {first:.3f} to {last:.3f}; {top} {shares[top]:.0%}; {seconds:.0f} s here"
    problems = [advice for advice, is_wrong in wrong.items() if is_wrong]
    return Gate("G1", statement, number, "", not problems, "; ".join(problems) or "go on")


def better_than_ddim_20(rows: Sequence[ImageRow], summary: Mapping[str, Any]) -> Gate:
    """G2: better than DDIM-20 on at least one metric, by a paired bootstrap, Holm-corrected over metrics.

    A metric that was not measured is named: the family that is corrected for is smaller without it.
    """
    statement = "better than DDIM-20 on at least one metric"
    theirs = {row.key: row for row in rows if row.method == "ddim-20"}
    ours = [row for row in rows if row.method == "policy"]
    if not theirs:
        return Gate("G2", statement, "", "", None, "add ddim-20 to evaluation.baselines")
    found: dict[str, Estimate] = {}
    for metric in G2_METRICS:
        pairs = [(row, getattr(row, metric), getattr(theirs[row.key], metric)) for row in ours]
        if all(one is not None and other is not None for _, one, other in pairs):
            found[metric] = _paired(pairs, summary)
    missing = [metric for metric in G2_METRICS if metric not in found]
    adjusted = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
    best = min(found, key=lambda metric: (found[metric].value <= 0, adjusted[metric]))
    enough = len({row.prompt for row in ours}) >= FEWEST_PROMPTS
    passed = enough and found[best].value > 0 and adjusted[best] < ALPHA
    without = f", without {' and '.join(missing)}" if missing else ""
    number = f"{best} {signed(found[best].value)} (p = {adjusted[best]:.3f} of {len(found)} metrics{without})"
    interval = _interval(found[best].ci95)
    next_step = (
        "go on" if passed else "stop and continue alone first (actions=standard, no refine), longer training"
    )
    return Gate("G2", statement, number, interval, passed, next_step)


def quality_at_nfe(summary: Mapping[str, Any]) -> Gate:
    """G3: H1 decided; how far from its NFE where it failed."""
    one = summary["hypotheses"]["H1"]
    statement = "H1 decided: the long schedule's quality at 30 NFE (close: to 35, far: above 40)"
    if one["passed"] is None:
        return Gate("G3", statement, "", "", None, "add ddim-50 (euler-50 for flow) to evaluation.baselines")
    nfe = one["nfe"]
    if one["passed"]:
        next_step = "write it down"
    elif not one["ci95"][0] >= -one["margin"]:
        next_step = "quality is not held: a lower price of compute (reward.c_nfe), or a quality floor"
    elif nfe <= CLOSE_NFE:
        next_step = "close: train longer, or a higher price of compute"
    else:
        next_step = "far: fewer actions, offline RL or preferences" if nfe > FAR_NFE else "train longer"
    return Gate(
        "G3", statement, f"{nfe:.1f} NFE", _interval(one["nfe_ci95"], "{:.1f}"), one["passed"], next_step
    )


def transfer_gate(cells: Sequence[TransferCell]) -> Gate:
    """G4: on at least one other backbone CLIP score within 5% of that backbone's long schedule.

    Every cell is a chance to pass, so the p of each being below that share is Holm-corrected over them all.
    """
    statement = "on a new backbone within 5% of the long schedule's CLIP score, zero-shot"
    elsewhere = [cell for cell in cells if not cell.own_backbone and cell.clip_ratio is not None]
    if not elsewhere:
        return Gate("G4", statement, "", "", None, "addiffusion transfer RUN --backbones NAME,NAME")
    if any(cell.clip_p is None for cell in elsewhere):
        return Gate(
            "G4", statement, "", "", None, "the matrix has no p-values: run `addiffusion transfer` again"
        )
    adjusted = holm([cell.clip_p for cell in elsewhere if cell.clip_p is not None])
    best, p = min(zip(elsewhere, adjusted, strict=True), key=lambda each: (each[1], -_lowest(each[0])))
    assert best.clip_ratio is not None
    value, low, high = best.clip_ratio
    passed = p < NON_INFERIORITY_ALPHA
    next_step = "go on" if passed else "train on both backbones, or the timestep observation, which transfers"
    return Gate(
        "G4",
        statement,
        f"{value:.1%} on {best.backbone} (p = {p:.3f} of {len(elsewhere)} cells)",
        f"{low:.1%} to {high:.1%}",
        passed,
        next_step,
    )


def _lowest(cell: TransferCell) -> float:
    """The lower end of a measured cell's interval."""
    assert cell.clip_ratio is not None
    return cell.clip_ratio[1]


_NEXT_IF_FAILED = {
    "H1": "see G3",
    "H2": "a better scorer for `look`, longer training, more restarts; until then use the named baseline",
    "H3": "stop_from and the price of compute; look at stopping times per tier in the report",
    "H4": "leave refine out, or refine elsewhere (engine.refine_region)",
}


def hypothesis(name: str, one: Mapping[str, Any]) -> Gate:
    """One hypothesis of a summary."""
    if one["passed"] is None:
        reason = one["statement"].partition("Not tested: ")[2]
        return Gate(
            name,
            one["statement"].partition(" Not tested")[0],
            "",
            "",
            None,
            f"evaluate with what is missing: {reason}",
        )
    against = H1_REFERENCES.get(one["against"], one["against"])
    number = f"{signed(one['estimate'])} against {against}"
    if name == "H3":
        number = f"ρ = {signed(one['estimate'])} with {against}"
    next_step = "go on" if one["passed"] else _NEXT_IF_FAILED[name]
    return Gate(name, one["statement"], number, _interval(one["ci95"]), one["passed"], next_step)


def _paired(pairs: Sequence[tuple[ImageRow, float, float]], summary: Mapping[str, Any]) -> Estimate:
    """The mean difference over prompts of means over seeds, resampled as the summary's tables are."""
    by_prompt: dict[str, list[float]] = {}
    tiers: dict[str, str] = {}
    for row, ours, theirs in pairs:
        by_prompt.setdefault(row.prompt, []).append(ours - theirs)
        tiers[row.prompt] = row.tier or ""
    options = summary["config"]["evaluation"]
    strata = tuple(tiers[prompt] for prompt in by_prompt)
    resampling = Resampling(len(by_prompt), options["resamples"], options["seed"], strata)
    return resampling.mean([float(np.mean(values)) for values in by_prompt.values()])


def _interval(ci95: Sequence[float], form: str | None = None) -> str:
    low, high = (form.format(end) if form else signed(end) for end in ci95)
    return f"{low} to {high}"
