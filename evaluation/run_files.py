"""What an evaluated run's folder says: its summary, its images' metrics, and its training's iterations.

Always true here: nothing is measured; a torn last line of a log is left out, a torn summary is an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from actors.errors import UserError
from evaluation.metrics.contracts import RESULTS_FILE
from evaluation.summary import SUMMARY_FILE, SUMMARY_KEYS
from learner.json_lines import read_rows

PROGRESS_FILE = Path("progress.jsonl")
METRICS_FOLDER = Path("evaluation/metrics")
"""Where metrics of an evaluation's images are kept."""


def read_summary(run_dir: Path) -> dict[str, Any]:
    """summary.json of a run; UserError if it is missing or not an evaluation's."""
    path = run_dir / SUMMARY_FILE
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{run_dir}: no summary.json there; run `addiffusion evaluate` first") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON; run `addiffusion evaluate` again") from error
    if not isinstance(summary, dict) or not set(SUMMARY_KEYS) <= set(summary):
        raise UserError(f"{path}: not an evaluation's summary; run `addiffusion evaluate` again")
    return summary


def read_metrics(run_dir: Path) -> dict[str, Any] | None:
    """metrics.json of an evaluation's images; None where nobody has measured them.

    Raises UserError for a file that is not one.
    """
    path = run_dir / METRICS_FOLDER / RESULTS_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found["methods"], dict):
            raise TypeError("methods is no mapping")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a file of metrics ({error}); run `addiffusion metrics` again"
        ) from error
    return dict(found)


def training_rows(path: Path) -> list[dict[str, Any]]:
    """The iterations of a progress log that gathered episodes; from a torn or damaged line on none."""
    return [row for row in read_rows(path) if row.get("episodes")]
