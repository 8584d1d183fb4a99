"""The folder of a run that was trained, evaluated, transferred and measured, with made-up numbers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from evaluation.metrics.contracts import RESULTS_FILE
from evaluation.rows import IMAGES_FILE, write_rows
from evaluation.run_files import METRICS_FOLDER
from evaluation.strips import STRIPS_FILE, Frame, Strip, encode_png, write_strips
from evaluation.traces import TRACES_FILE, Trace, write_traces
from evaluation.transfer import TRANSFER_FILE, TransferCell
from tests.evaluation import synthetic


def write_run(run_dir: Path, quality: float = 0.655, prompt: str = "a red circle", tier: str = "1") -> Path:
    """A run's folder with all that a report can be made of."""
    summary, rows = synthetic.evaluation(quality, prompts_per_tier=6)
    if tier != "1":
        for method in (summary["policy"], *summary["baselines"].values()):
            method["per_tier"][tier] = method["per_tier"].pop("1")
    run_dir.mkdir(parents=True)
    (run_dir / "summary.json").write_text(json.dumps(summary))
    renamed = [
        replace(
            row, tier=tier if row.tier == "1" else row.tier, category="Animals" if row.tier == "2" else prompt
        )
        for row in rows
    ]
    write_rows(run_dir / IMAGES_FILE, renamed)
    png = encode_png(synthetic.picture())
    frames = tuple(
        Frame(action, 0, 3, 2, 0.5, png, 0.25, png if action == "refine" else None)
        for action in ("look", "restart", "refine", "stop")
    )
    strips = [
        Strip(prompt, tier, 1, 0.5, 3, 1, frames, png),
        Strip(prompt, tier, 1, 0.5, 3, 1, frames, png, 0.375, "dpmpp-10"),
    ]
    write_strips(run_dir / STRIPS_FILE, strips)
    write_traces(
        run_dir / TRACES_FILE,
        [Trace(prompt, 1, tier, (3, 4, 4), (0.2, 0.4, 0.4), ("continue", "stop"))],
    )
    cells = [
        TransferCell(
            *("world-2", "ddim-7", prompt, False, 0.5, 7.0, 7.5, (0.1, 0.05, 0.2), True),
            clip_ratio=(0.97, 0.96, 0.99),
            clip_p=0.001,
        ),
        TransferCell("world-3", "ddim-7", prompt, False, failed="its widths differ"),
    ]
    (run_dir / TRANSFER_FILE).write_text(json.dumps([asdict(cell) for cell in cells]))
    metrics = {
        name: {
            "clip_score": {"value": 31.4, "ci95": [30.0, 32.0], "images": 72, "by_seed": [], "model": "a@b"},
            "fid": {"missing": f"no reference; {prompt}"},
        }
        for name in ("policy", *summary["baselines"])
    }
    (run_dir / METRICS_FOLDER).mkdir(parents=True)
    (run_dir / METRICS_FOLDER / RESULTS_FILE).write_text(json.dumps({"methods": metrics, "config": {}}))
    rows_of_training = [
        {
            "iteration": i,
            "episodes": 8,
            "return": i / 9,
            "nfe": 20.0 - i,
            "entropy": 1.0,
            "actions": {"stop": 1.0},
        }
        for i in range(1, 9)
    ]
    lines = [json.dumps(row) for row in rows_of_training]
    (run_dir / "progress.jsonl").write_text("\n".join([*lines, '{"iteration": 9, "epi']))
    return run_dir
