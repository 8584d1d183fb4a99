"""What judges said, as the numbers of judge.json: tallies, strengths, and how far judges agree.

Always true here: pure; a number that does not exist is {"missing": reason}, never left out. Whatever was
judged is told with what was not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from actors.files import written_aside
from evaluation.judge.agreement import agreement
from evaluation.judge.bradley_terry import ELO, Comparison, bradley_terry
from evaluation.judge.judging import Judged
from evaluation.judge.verdicts import Verdict, shared_outcomes, tally
from evaluation.metrics.contracts import UnmeasurableError
from evaluation.statistics import Estimate

SUMMARY_FILE = "judge.json"


def summarise(judged: Mapping[str, Judged], resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """By judge its tallies and strengths (in Elo points against the mean), and kappa for two judges each."""
    return {
        "judges": {
            name: {
                "pairs": [_tally(verdicts, resamples, seed) for verdicts in _by_methods(each.verdicts)],
                "strengths": _strengths(each.verdicts),
                "failed_questions": each.failed,
                "last_error": each.last_error,
            }
            for name, each in judged.items()
        },
        "kappa": {
            f"{one} and {other}": _kappa(judged[one].verdicts, judged[other].verdicts, resamples, seed)
            for one, other in combinations(judged, 2)
        },
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """judge.json in `folder`, whole or not at all."""
    path = folder / SUMMARY_FILE
    with written_aside(path) as aside:
        aside.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _by_methods(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    found: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        found.setdefault((verdict.first, verdict.second), []).append(verdict)
    return list(found.values())


def _tally(verdicts: Sequence[Verdict], resamples: int, seed: int) -> dict[str, Any]:
    counted = tally(verdicts, resamples, seed)
    return {**asdict(counted), "win_rate": None if counted.win_rate is None else _numbers(counted.win_rate)}


def _strengths(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    compared = [
        Comparison(each.first, each.second, each.score, each.prompt)
        for each in verdicts
        if each.outcome is not None
    ]
    try:
        fitted = bradley_terry(compared)
    except UnmeasurableError as error:
        return {"missing": str(error)}
    return {method: _numbers(fitted.of(method), ELO) for method in fitted.methods}


def _kappa(one: Sequence[Verdict], other: Sequence[Verdict], resamples: int, seed: int) -> dict[str, Any]:
    try:
        return _numbers(agreement(*shared_outcomes(one, other), resamples, seed))
    except UnmeasurableError as error:
        return {"missing": str(error)}


def _numbers(found: Estimate, scale: float = 1.0) -> dict[str, Any]:
    return {"estimate": scale * found.value, "ci95": [scale * end for end in found.ci95], "p": found.p}
