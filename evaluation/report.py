"""report.html of a run: one file that needs nothing else, from what an evaluation wrote.

Always true here: every number comes from summary.json, the images table, strips, traces, transfer matrix or
progress log of the run; nothing is measured here. All text is escaped by the template engine, pictures are
data, and the page has no scripts. The file is written aside and renamed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from actors.files import written_aside
from evaluation import figures, strip_figure
from evaluation.analysis import (
    CLEAR,
    by_attempts,
    by_category,
    by_tier,
    losses,
    reference_of,
    stopping,
)
from evaluation.figures import Picture
from evaluation.gates import gates, gates_table
from evaluation.headline import further_sentences, opening_sentence, outcome, signed
from evaluation.rows import IMAGES_FILE, ImageRow, read_rows
from evaluation.run_files import PROGRESS_FILE, read_metrics, read_summary, training_rows
from evaluation.strips import STRIPS_FILE, Frame, Strip, read_strips
from evaluation.tables import (
    Table,
    hypotheses_table,
    methods_table,
    metrics_table,
    outcome_of,
    p_value,
    quality_adjusted_table,
    write_tables,
)
from evaluation.traces import TRACES_FILE, Trace, read_traces
from evaluation.transfer import read_transfer, transfer_table

FIGURES_FOLDER = Path("evaluation/figures")
"""Where a run keeps its figures, as SVG and as PNG."""
MASKS = 12
"""Refinements whose masks are shown."""

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
    """Write run_dir/report.html, and its figures and tables as files, from the run's evaluation.

    Raises UserError if there is none.
    """
    summary = read_summary(run_dir)
    everything = read_rows(run_dir / IMAGES_FILE)
    rows = [row for row in everything if row.method == "policy"]
    strips = read_strips(run_dir / STRIPS_FILE) if (run_dir / STRIPS_FILE).exists() else []
    cells = read_transfer(run_dir)
    found, measured = gates(run_dir), read_metrics(run_dir)
    tables: dict[str, Table] = {
        "methods": methods_table(summary),
        "hypotheses": hypotheses_table(summary),
        "gates": gates_table(found),
        "quality_adjusted": quality_adjusted_table(summary),
    }
    if cells:
        tables["transfer"] = transfer_table(cells)
    if measured is not None:
        tables["metrics"] = metrics_table(measured)
    drawn = _figures(summary, rows, read_traces(run_dir / TRACES_FILE))
    drawn |= _training_figures(training_rows(run_dir / PROGRESS_FILE), list(summary["actions"]))
    comparable = {
        name: [row for row in everything if row.method == name]
        for name, each in summary["baselines"].items()
        if not each["bound"]
    }
    reference = reference_of(rows, comparable)
    html = _template().render(
        run=run_dir.resolve().name,
        summary=summary,
        outcome=outcome(summary),
        opening=opening_sentence(summary),
        further=further_sentences(summary),
        figures={name: _svg_uri(picture.svg) for name, picture in drawn.items()},
        gates=found[: -len(summary["hypotheses"])],
        stopping={
            "tier": stopping(rows, by_tier),
            "category": stopping(rows, by_category),
        },
        reference=reference,
        losses={
            "tier": losses(rows, comparable[reference], by_tier),
            "category": losses(rows, comparable[reference], by_category),
            "tries": losses(rows, comparable[reference], by_attempts),
        },
        clear=CLEAR,
        strips=[strip for strip in strips if strip.loss is None],
        failures=[strip for strip in strips if strip.loss is not None],
        masks=_masks(strips),
        cells=cells,
        tables=tables,
        bars=_bars(summary),
        images=len(rows),
        config=json.dumps(summary["config"], indent=2, ensure_ascii=False),
    )
    if (shown := strip_figure.decisions([strip for strip in strips if strip.loss is None])) is not None:
        drawn["decisions"] = shown
    for name, picture in drawn.items():
        for suffix, content in (("svg", picture.svg.encode()), ("png", picture.png)):
            with written_aside(run_dir / FIGURES_FOLDER / f"{name}.{suffix}") as aside:
                aside.write_bytes(content)
    write_tables(run_dir, tables)
    path = run_dir / "report.html"
    with written_aside(path) as aside:
        aside.write_text(html, encoding="utf-8")
    return path


def _figures(
    summary: Mapping[str, Any], rows: Sequence[ImageRow], traces: Sequence[Trace]
) -> dict[str, Picture]:
    """What can be drawn of an evaluation, by the name of its file."""
    what = summary["baselines"], {"policy": summary["policy"]}, summary["config"]["quality"]
    drawn = {f"pareto_{axis}": figures.pareto(*what, axis) for axis in ("nfe", "cost")}
    drawn["nfe_per_tier"] = figures.nfe_per_tier(summary, rows)
    drawn["actions"] = figures.actions_over_decisions(rows, list(summary["actions"]))
    categories = sorted({row.category for row in rows if row.category is not None}, reverse=True)
    if categories:
        groups = {name: [row.nfe for row in rows if row.category == name] for name in categories}
        drawn["nfe_per_category"] = figures.nfe_per_group(groups)
    if traces:
        drawn["trajectories"] = figures.quality_trajectories(traces, summary["config"]["quality"])
    return drawn


def _masks(strips: Sequence[Strip]) -> list[tuple[Strip, Frame]]:
    """The refinements among what is shown, at most MASKS."""
    return [(strip, frame) for strip in strips for frame in strip.frames if frame.mask is not None][:MASKS]


def _training_figures(rows: Sequence[Mapping[str, Any]], action_names: Sequence[str]) -> dict[str, Picture]:
    """What can be drawn of a training: none if it has fewer than two iterations."""
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
        "training": figures.training_curves(iterations, curves),
        "training_actions": figures.actions_over_training(iterations, shares),
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
        signed=signed, action_colour=figures.action_colour, p_value=p_value, png=_png_uri, outcome=outcome_of
    )
    return environment.get_template("report.html.j2")


def _svg_uri(svg: str) -> Markup:
    return Markup("data:image/svg+xml;base64,") + base64.b64encode(svg.encode()).decode("ascii")


def _png_uri(png: str) -> str:
    return f"data:image/png;base64,{png}"
