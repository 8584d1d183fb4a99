"""Tables of an evaluation as a paper or a README takes them: Markdown and LaTeX of the same cells.

Always true here: cells are text already, and both formats escape what means something in them; a number that
was not measured is an empty cell or says that it is missing, never a zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.files import written_aside
from evaluation.headline import signed
from evaluation.metrics.config import METRIC_NAMES
from evaluation.metrics.definitions import METRICS

TABLES_FOLDER = Path("evaluation/tables")
"""Where a run keeps its tables."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "×": r"$\times$",
    "ρ": r"$\rho$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "’": "'",
}


@dataclass(frozen=True)
class Table:
    """A title, a header, and rows of as many cells; the first column is text, the others are numbers.

    notes stand below it, a paragraph each.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows), f"{self.title}: a row of another width"

    def markdown(self) -> str:
        """A GitHub table."""
        lines = [self.header, ["---"] + ["---:"] * (len(self.header) - 1), *self.rows]
        body = "\n".join(f"| {' | '.join(_markdown(cell) for cell in line)} |" for line in lines)
        notes = "".join(f"\n{_markdown(note)}\n" for note in self.notes)
        return f"**{_markdown(self.title)}**\n\n{body}\n{notes}"

    def latex(self) -> str:
        """A `tabular` for booktabs, with its caption."""
        body = "\n".join(" & ".join(_latex(cell) for cell in row) + r" \\" for row in self.rows)
        header = " & ".join(_latex(cell) for cell in self.header)
        columns = "l" + "r" * (len(self.header) - 1)
        notes = "".join(f"\n\\par\\footnotesize {_latex(note)}\n" for note in self.notes)
        return (
            "\\begin{table}\n\\centering\n"
            f"\\caption{{{_latex(self.title)}}}\n"
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{header} \\\\\n\\midrule\n{body}\n\\bottomrule\n"
            f"\\end{{tabular}}\n{notes}\\end{{table}}\n"
        )


def write_tables(run_dir: Path, tables: Mapping[str, Table]) -> None:
    """NAME.md and NAME.tex of each."""
    for name, table in tables.items():
        for suffix, text in (("md", table.markdown()), ("tex", table.latex())):
            with written_aside(run_dir / TABLES_FOLDER / f"{name}.{suffix}") as aside:
                aside.write_text(text, encoding="utf-8")


def methods_table(summary: Mapping[str, Any]) -> Table:
    """Every method of a summary: the policy first, then from the cheapest to the dearest."""
    rows = [_method_row("policy", summary["policy"])]
    ordered = sorted(summary["baselines"].items(), key=lambda item: (item[1]["bound"], item[1]["cost"]))
    rows += [_method_row(f"{name} (bound)" if one["bound"] else name, one) for name, one in ordered]
    header = (
        "method",
        "quality",
        "95%",
        "NFE",
        "network evals",
        "looks",
        "cost",
        "seconds",
        "lead",
        "p (Holm)",
        "detectable",
    )
    what = summary["config"]
    return Table(f"Quality ({what['quality']}) and cost, {what['images']} images a method", header, rows)


def hypotheses_table(summary: Mapping[str, Any]) -> Table:
    """H1 to H4: estimate, interval, p and outcome."""
    rows = []
    for name, one in summary["hypotheses"].items():
        measured = one["estimate"] is not None
        rows.append(
            (
                name,
                signed(one["estimate"]) if measured else "",
                f"{signed(one['ci95'][0])} to {signed(one['ci95'][1])}" if measured else "",
                p_value(one["p"]) if measured else "",
                outcome_of(one["passed"]),
            )
        )
    return Table("Hypotheses", ("hypothesis", "estimate", "95%", "p", "outcome"), rows)


def quality_adjusted_table(summary: Mapping[str, Any]) -> Table:
    """What each family of methods spends for the long schedule's quality, and how surely it gets there."""
    rows = []
    for name, one in summary["quality_adjusted"].items():
        low, high = (f"{end:.1f}" if end is not None else "" for end in (one["low"], one["high"]))
        rows.append(
            (
                name,
                f"{one['value']:.1f}" if one["value"] is not None else "",
                f"{low} to {high or 'unknown'}" if low else "",
                f"{one['reached']:.0%}",
            )
        )
    return Table(
        "Cost at the long schedule's quality", ("family", "cost", "95%", "resamples that get there"), rows
    )


def metrics_table(found: Mapping[str, Any]) -> Table:
    """Metrics of the images by method, those of which there is a number; the notes say what is missing."""
    methods: Mapping[str, Mapping[str, Any]] = found["methods"]
    shown = [name for name in METRIC_NAMES if any("value" in one.get(name, {}) for one in methods.values())]
    rows = [
        (name, *(measured_cell(one.get(metric, {})) for metric in shown)) for name, one in methods.items()
    ]
    labels = [f"{METRICS[name].label} {'↑' if METRICS[name].better == 'higher' else '↓'}" for name in shown]
    notes = [f"missing {line}" for line in missing_metrics(found)]
    return Table("Metrics of the images", ("method", *labels), rows, notes)


def missing_metrics(found: Mapping[str, Any]) -> list[str]:
    """A line for each reason why numbers are missing, with the metrics that lack them."""
    reasons: dict[str, list[str]] = {}
    for one in found["methods"].values():
        for metric, value in one.items():
            if "missing" in value and metric not in reasons.setdefault(value["missing"], []):
                reasons[value["missing"]].append(metric)
    return [f"{', '.join(metrics)}: {reason}" for reason, metrics in reasons.items() if metrics]


def outcome_of(passed: bool | None) -> str:
    """How a test came out, in words."""
    return "not measured" if passed is None else "passed" if passed else "failed"


def p_value(p: float) -> str:
    """Three decimals, or that it is smaller."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _method_row(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = one["ci95"]
    lead = one.get("difference")
    return (
        name,
        f"{one['quality']:.3f}",
        f"{low:.3f} to {high:.3f}",
        *(f"{one[column]:.2f}" for column in ("nfe", "network_evals", "looks", "cost")),
        f"{one['seconds']:.3f}",
        signed(lead["estimate"]) if lead else "",
        p_value(lead["p_holm"]) if lead else "",
        f"{lead['detectable']:.3f}" if lead else "",
    )


def measured_cell(one: Mapping[str, Any]) -> str:
    """A measurement, as metrics.json has it, with its interval."""
    if "value" not in one:
        return "missing"
    interval = "" if one["ci95"] is None else f" ({one['ci95'][0]:.4g} to {one['ci95'][1]:.4g})"
    return f"{one['value']:.4g}{interval}"


def _markdown(cell: str) -> str:
    return re.sub(r"([\\|*_`<>])", r"\\\1", " ".join(cell.split()))


def _latex(cell: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(cell.split()))
