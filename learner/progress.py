"""What a run says while it goes on: one row an iteration, in a file and as a live line.

Always true here: a row's means are over all episodes of the iteration, whichever runner gathered them;
`progress.jsonl` holds each iteration once, also after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    TIMERS,
)
from rich.console import Console
from rich.live import Live
from rich.text import Text

from actors.env_runner import METRICS
from learner.gradients import SKIPPED, SKIPPED_IN_A_ROW
from learner.json_lines import JsonLines

_LEARNER = {
    "policy_loss": "policy_loss",
    "vf_loss": "value_loss",
    "vf_explained_var": "explained_variance",
    "gradients_default_optimizer_global_norm": "gradient_norm",
}
_TIMERS = {"sampling_s": ENV_RUNNER_SAMPLING_TIMER, "update_s": LEARNER_UPDATE_TIMER}
"""RLlib smooths them over iterations."""
_MINIBATCH = frozenset(_LEARNER.values())
"""Of the last minibatch."""


def iteration_row(results: Mapping[str, Any], *, iteration: int, seconds: float) -> dict[str, Any]:
    """One iteration's statistics from RLlib's results; `seconds` is its wall time.

    `episodes` is 0, and no mean is there, when no sample came back.
    """
    sums = {
        name: float(value) for name, value in results.get(ENV_RUNNER_RESULTS, {}).get(METRICS, {}).items()
    }
    gathered = sums.get("episodes", 0.0)
    row: dict[str, Any] = {
        "iteration": iteration,
        "seconds": seconds,
        "episodes": 0 if math.isnan(gathered) else int(gathered),  # RLlib's sum of nothing may be NaN
    }
    if row["episodes"] == 0:
        return row
    episodes, decisions = sums["episodes"], sums["decisions"]
    learner, timers = results[LEARNER_RESULTS][DEFAULT_MODULE_ID], results.get(TIMERS, {})
    nfe = sums["nfe"] / episodes
    row |= {
        "decisions": int(decisions),
        "return": sums["return"] / episodes,
        "reward_parts": _part(sums, "reward/", episodes),
        "quality": sums["quality"] / episodes,
        "quality_over_reference": sums["quality_over_reference"] / episodes,
        "nfe": nfe,
        "nfe_std": math.sqrt(max(sums["nfe_squared"] / episodes - nfe**2, 0.0)),
        "cost": sums["cost"] / episodes,
        "scores": _part(sums, "score/", episodes),
        "actions": _part(sums, "action/", decisions),
        "entropy": sums["entropy"] / decisions,
        "denoiser_utilisation": sums["denoising_s"] / sums["seconds"],
        "waiting_share": sums["waiting_s"] / sums["seconds"],
        "remembered_share": sums.get("remembered", 0.0) / max(sums.get("calls", 0.0), 1.0),
        "previews": int(sums["previews"]),
        "unwritten_trajectories": int(sums.get("unwritten", 0)),
        "twins": int(sums.get("twins", 0)),
        "policy_lag": float(learner["weights_seq_no"]) - 1.0 - sums["weights_seq_no"] / episodes,
        "episodes_per_s": episodes / seconds,
        **{name: float(timers.get(theirs, 0.0)) for name, theirs in _TIMERS.items()},
    }
    row |= {name: int(learner.get(name, 0)) for name in (SKIPPED, SKIPPED_IN_A_ROW)}
    row |= {ours: float(learner[theirs]) for theirs, ours in _LEARNER.items() if theirs in learner}
    if row.get(SKIPPED):  # of a minibatch that changed nothing
        row = {name: value for name, value in row.items() if name not in _MINIBATCH or math.isfinite(value)}
    return row


def _part(sums: Mapping[str, float], prefix: str, count: float) -> dict[str, float]:
    return {
        name.removeprefix(prefix): value / count for name, value in sums.items() if name.startswith(prefix)
    }


def progress_file(path: Path, next_iteration: int) -> JsonLines:
    """progress.jsonl of a run; opening it for iteration n drops the rows of n and later."""
    return JsonLines(path, lambda row: row["iteration"] < next_iteration)


class LiveLine:
    """A callback for `train`: shows the last row of a run on the terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._live = Live(console=console, refresh_per_second=2, transient=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Show a row of `train`; an event stays above the line."""
        if row.get("phase") == "event":
            self._live.console.print(Text(format_row(row), style="yellow"))
        else:
            self._live.update(Text(format_row(row)))


def format_row(row: Mapping[str, Any]) -> str:
    """A row as one readable line."""
    phase = row.get("phase")
    if phase == "references":
        return f"references {row['done']}/{row['total']}"
    if phase == "waiting":
        return str(row["sentence"])
    if phase == "event":
        return f"iteration {row['iteration']}: {row['sentence']}"
    if phase != "training":
        return str(phase)
    if not row["episodes"]:
        return f"iteration {row['iteration']}/{row['iterations']}: no episode came back"
    shares = " ".join(f"{name} {share:.0%}" for name, share in sorted(row["actions"].items()))
    budget = row.get("budget", {})
    aim = f" (aim {budget['target']:g} at price {row['c_nfe']:.3g})" if budget else ""
    warning = f" · {budget['warning']}" if "warning" in budget else ""
    return (
        f"iteration {row['iteration']}/{row['iterations']} · return {row['return']:+.3f} · "
        f"quality {row['quality']:.3f} ({row['quality_over_reference']:+.3f}) · "
        f"NFE {row['nfe']:.1f}±{row['nfe_std']:.1f} · {shares} · entropy {row['entropy']:.2f} · "
        f"denoiser {row['denoiser_utilisation']:.0%}, {row['remembered_share']:.0%} remembered · "
        f"lag {row['policy_lag']:.1f} · {row['episodes_per_s']:.1f} episodes/s{_skipped(row)} · "
        f"{clock(row['time_left_s'])} left{aim}{warning}"
    )


def _skipped(row: Mapping[str, Any]) -> str:
    return f" · {row[SKIPPED]} updates not finite, skipped" if row.get(SKIPPED) else ""


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
