"""report.html of a run: one file that needs nothing else, from what an evaluation wrote.

Always true here: every number comes from summary.json, the images table, the strips or the progress log of
the run; nothing is measured here. All text is escaped by the template engine, pictures are data, and the
page has no scripts. The file is written aside and renamed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from actors.errors import UserError
from actors.files import written_aside
from evaluation import figures
from evaluation.headline import further_sentences, opening_sentence, outcome, signed
from evaluation.rows import IMAGES_FILE, read_rows
from evaluation.strips import STRIPS_FILE, read_strips
from evaluation.summary import SUMMARY_FILE, SUMMARY_KEYS

PROGRESS_FILE = Path("progress.jsonl")

#: Curves drawn from progress.jsonl, where it has them: key, and what the panel is called.
CURVES = {
    "return": "return",
    "quality_over_reference": "quality over reference",
    "nfe": "mean NFE",
    "nfe_std": "spread of NFE",
    "entropy": "entropy of the policy",
    "value_loss": "value loss",
}


def write_report(run_dir: Path) -> Path:
    """Write run_dir/report.html from the run's evaluation; UserError if there is none."""
    summary = read_summary(run_dir)
    rows = [row for row in read_rows(run_dir / IMAGES_FILE) if row.method == "policy"]
    strips = read_strips(run_dir / STRIPS_FILE) if (run_dir / STRIPS_FILE).exists() else []
    training = training_rows(run_dir / PROGRESS_FILE)
    html = _template().render(
        run=run_dir.resolve().name,
        summary=summary,
        outcome=outcome(summary),
        opening=opening_sentence(summary),
        further=further_sentences(summary),
        pareto={axis: _svg_uri(figures.pareto(summary, axis)) for axis in ("nfe", "cost")},
        nfe_per_tier=_svg_uri(figures.nfe_per_tier(summary, rows)),
        actions=_svg_uri(figures.actions_over_decisions(rows, list(summary["actions"]))),
        training=_training_figures(training, list(summary["actions"])),
        strips=strips,
        bars=_bars(summary),
        images=len(rows),
        config=json.dumps(summary["config"], indent=2, ensure_ascii=False),
    )
    path = run_dir / "report.html"
    with written_aside(path) as aside:
        aside.write_text(html, encoding="utf-8")
    return path


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


def training_rows(path: Path) -> list[dict[str, Any]]:
    """The iterations of a progress log that gathered episodes; a torn last line is left out."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return [row for row in rows if row.get("episodes")]


def _training_figures(rows: Sequence[Mapping[str, Any]], action_names: Sequence[str]) -> dict[str, Markup]:
    """What can be drawn of a training: by title, none if it has fewer than two iterations."""
    if len(rows) < 2:
        return {}
    iterations = [int(row["iteration"]) for row in rows]
    curves = {
        title: [float(row[key]) for row in rows]
        for key, title in CURVES.items()
        if all(isinstance(row.get(key), int | float) for row in rows)
    }
    shares = {name: [float(row["actions"].get(name, 0.0)) for row in rows] for name in action_names}
    return {
        "Curves over iterations; the dark line is a running mean.": _svg_uri(
            figures.training_curves(iterations, curves)
        ),
        "What was decided in training, where actions are drawn from the policy and not its first choice.": (
            _svg_uri(figures.actions_over_training(iterations, shares))
        ),
    }


def _bars(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Table lines: the policy, then all baselines and bounds from the cheapest to the dearest."""
    baselines: Mapping[str, Mapping[str, Any]] = summary["baselines"]
    ordered = sorted(baselines.items(), key=lambda item: (item[1]["bound"], item[1]["cost"], item[0]))
    return [{"name": "the policy", **summary["policy"]}, *({"name": name, **each} for name, each in ordered)]


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        signed=signed, action_colour=figures.action_colour, p_value=_p_value, png=_png_uri
    )
    return environment.get_template("report.html.j2")


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _svg_uri(svg: str) -> Markup:
    return Markup("data:image/svg+xml;base64,") + base64.b64encode(svg.encode()).decode("ascii")


def _png_uri(png: str) -> str:
    return f"data:image/png;base64,{png}"
