"""What an evaluated run's folder says: its summary, and its training's iterations.

Always true here: nothing is measured; a torn last line of a log is left out, a torn summary is an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from actors.errors import UserError
from evaluation.summary import SUMMARY_FILE, SUMMARY_KEYS

PROGRESS_FILE = Path("progress.jsonl")


def read_summary(run_dir: Path) -> dict[str, Any]:
    """summary.json of a run; UserError if it is missing or not an evaluation's.

    What an earlier version did not measure, quality_adjusted, is empty.
    """
    path = run_dir / SUMMARY_FILE
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{run_dir}: no summary.json there; run `addiffusion evaluate` first") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON; run `addiffusion evaluate` again") from error
    if isinstance(summary, dict):
        summary.setdefault("quality_adjusted", {})
    if not isinstance(summary, dict) or not set(SUMMARY_KEYS) <= set(summary):
        raise UserError(f"{path}: not an evaluation's summary; run `addiffusion evaluate` again")
    return summary


def training_rows(path: Path) -> list[dict[str, Any]]:
    """The iterations of a progress log that gathered episodes; a torn last line is left out."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return [row for row in rows if row.get("episodes")]
