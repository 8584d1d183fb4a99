"""A sweep's rows as files: CSV, Markdown, LaTeX (booktabs), and a page with figures.

Always true here: every file is whole or absent; all of them have the same numbers, rounded for people but
in the CSV; a row without numbers says why. Nothing in the page needs another file, and it has no scripts.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from actors.files import written_aside
from evaluation.sweep_figures import Variant, parallel_coordinates, quality_against_cost
from tune_configs.fixed_schedules import PART as FIXED
from tune_configs.results import Row
from tune_configs.sweep_config import METRICS
from tune_configs.sweep_files import Sweep

CSV, MARKDOWN, LATEX, REPORT = "results.csv", "results.md", "results.tex", "report.html"
HEADERS = (
    "variant",
    "seeds",
    "utility",
    "95%",
    "difference",
    "p (Holm)",
    "quality",
    "NFE",
    "cost",
    "seconds",
    "status",
)
_LATEX = str.maketrans(
    {
        "_": r"\_",
        "%": r"\%",
        "&": r"\&",
        "#": r"\#",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",  # these three are other signs in LaTeX's default fonts
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"\ensuremath{\pm}",
    }
)


def write_results(folder: Path, sweep: Sweep, rows: Sequence[Row], *, command: str) -> Path:
    """Write all four into `folder`; gives the page."""
    files = {
        CSV: as_csv(rows),
        MARKDOWN: as_markdown(sweep, rows),
        LATEX: as_latex(sweep, rows),
        REPORT: as_page(sweep, rows, command=command),
    }
    for name, content in files.items():
        with written_aside(folder / name) as aside:
            aside.write_text(content, encoding="utf-8")
    return folder / REPORT


def as_csv(rows: Sequence[Row]) -> str:
    """One line a variant, all digits; what is not there is empty."""
    records = [_record(row) for row in rows]
    names = list(dict.fromkeys(name for record in records for name in record))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def _record(row: Row) -> dict[str, object]:
    low, high = row.interval or (None, None)
    difference = row.difference
    return {
        "part": row.label.partition("/")[0],
        "variant": row.variant,
        "status": row.status,
        "seeds_finished": row.finished,
        "seeds_planned": row.planned,
        "iterations": row.iterations,
        **{name: row.numbers.get(name) for name in METRICS},
        "low": low,
        "high": high,
        "seed_sd": row.seed_sd,
        "difference": difference and difference.value,
        "difference_low": difference and difference.low,
        "difference_high": difference and difference.high,
        "p": difference and difference.p,
        "p_holm": row.p_holm,
        "seconds": row.seconds,
        "reference": int(row.is_reference),
        **row.values,
        "error": " | ".join(row.errors),
    }


def as_markdown(sweep: Sweep, rows: Sequence[Row]) -> str:
    """A table for a README or a pull request."""
    lines = [f"# {sweep.title}", "", sweep.config.description, ""]
    lines += ["| " + " | ".join(HEADERS) + " |", "|" + "---|" * len(HEADERS)]
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells(sweep, row)) + " |" for row in rows
    ]
    errors = [f"- {row.label}: `` {error} ``" for row in rows for error in row.errors]
    return "\n".join([*lines, "", *(["Failed:", "", *errors, ""] if errors else []), footnote(sweep), ""])


def as_latex(sweep: Sweep, rows: Sequence[Row]) -> str:
    """A booktabs table."""
    lines = [
        r"\begin{tabular}{ll" + "r" * (len(HEADERS) - 3) + "l}",
        r"\toprule",
        " & ".join(header.translate(_LATEX) for header in HEADERS) + r" \\",
        r"\midrule",
    ]
    part = None
    for row in rows:
        now = row.label.partition("/")[0]
        if part not in (None, now):
            lines.append(r"\midrule")
        part = now
        lines.append(" & ".join(cell.translate(_LATEX) for cell in cells(sweep, row)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", "% " + footnote(sweep), ""])


def as_page(sweep: Sweep, rows: Sequence[Row], *, command: str) -> str:
    """The page: the table, what failed, and the figures."""
    drawn = [_variant(sweep, row) for row in rows if row.numbers]
    figures = {}
    if drawn:
        figures["Quality against cost, on held-out prompts"] = _uri(quality_against_cost(drawn))
        policies = [one for one in drawn if not one.fixed]
        if len(policies) > 1 and all(one.values for one in policies):
            figures["What was varied, and what came of it"] = _uri(parallel_coordinates(policies))
    environment = Environment(
        loader=PackageLoader("tune_configs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("sweep.html.j2").render(
        title=sweep.title,
        description=sweep.config.description,
        command=command,
        headers=HEADERS,
        rows=[(row, cells(sweep, row)) for row in rows],
        errors=[(row.label, error) for row in rows for error in row.errors],
        figures=figures,
        footnote=footnote(sweep),
    )


def cells(sweep: Sweep, row: Row) -> list[str]:
    """A row's cells, in the order of the headers."""
    name = row.variant if len(sweep.parts) == 1 else row.label
    numbers = row.numbers
    difference = row.difference
    compared = (
        ""
        if difference is None
        else f"{difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
    )
    return [
        f"{name} (reference)" if row.is_reference else name,
        f"{row.finished}/{row.planned}",
        f"{numbers['utility']:.4f}" + (f" ± {row.seed_sd:.4f}" if row.seed_sd is not None else "")
        if numbers
        else "",
        f"{row.interval[0]:.4f} to {row.interval[1]:.4f}" if row.interval else "",
        compared,
        "" if row.p_holm is None else "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}",
        *(
            f"{numbers[name]:.{digits}f}" if numbers else ""
            for name, digits in (("quality", 4), ("nfe", 2), ("cost", 2))
        ),
        "" if row.seconds is None else f"{row.seconds:.0f}",
        row.status + (f" at iteration {row.iterations}" if row.status == "stopped" else ""),
    ]


def footnote(sweep: Sweep) -> str:
    """How the numbers came about."""
    judge, metric = sweep.config.judge, sweep.config.metric
    return (
        f"Held-out prompts (at most {judge.prompts}), {judge.seeds} images each. The interval, the spread "
        f"over training seeds (±) and the difference to the reference are of {metric}; intervals are 95%, "
        f"paired bootstrap over prompts, {judge.resamples} resamples; p by Holm over all comparisons. "
        "seconds: of a trial's iterations, mean."
    )


def _variant(sweep: Sweep, row: Row) -> Variant:
    name = row.variant if len(sweep.parts) == 1 else row.label
    numbers = row.numbers
    return Variant(
        name,
        numbers["cost"],
        numbers["quality"],
        numbers["utility"],
        row.values,
        row.is_reference,
        fixed=row.part == FIXED,
    )


def _uri(svg: str) -> Markup:
    return Markup("data:image/svg+xml;base64,") + base64.b64encode(svg.encode()).decode("ascii")
