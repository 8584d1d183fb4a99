"""Tables: what means something in Markdown and LaTeX means nothing in a cell."""

import re

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from evaluation.tables import Table, methods_table, metrics_table, quality_adjusted_table
from tests.evaluation import synthetic

HOSTILE = r"a|b & c_d $x$ 50% #1 {e} ~f ^g \h <i>"


def test_cells_cannot_break_out() -> None:
    table = Table("A & B | C", ("method", "x_1"), [(HOSTILE, "−0.5"), ("plain", "1")])
    lines = table.markdown().splitlines()[2:]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    body = table.latex().split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {1}
    assert body[0].startswith(
        r"a|b \& c\_d \$x\$ 50\% \#1 \{e\} \textasciitilde{}f \textasciicircum{}g \textbackslash{}h"
    )
    assert "$-$0.5" in body[0]


def test_what_the_long_schedules_quality_costs_and_what_can_be_shown_are_in_the_tables() -> None:
    """DDIM-50 has .65; DPM-Solver++ stops at .60; the policy has .70 for about 16 NFE."""
    summary, _ = synthetic.evaluation(0.70)
    adjusted = {row[0]: row[1:] for row in quality_adjusted_table(summary).rows}
    assert adjusted["dpmpp"] == ("", "", "0%")
    assert adjusted["ddim"] == ("50.0", "50.0 to 50.0", "100%")
    assert float(adjusted["policy"][0]) == pytest.approx(summary["policy"]["cost"], abs=0.05)
    table = methods_table(summary)
    shown = {row[0]: row[table.header.index("detectable")] for row in table.rows}
    assert shown.pop("policy") == ""
    rng = np.random.default_rng(0)
    prompts, spread = 120, 0.03 * np.sqrt(2 / 3)  # two methods' own noise, three seeds
    studies = rng.normal(float(shown["ddim-50"]), spread, (2_000, prompts))
    assert np.mean(ttest_1samp(studies, 0.0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.1)


def test_lines_in_a_cell_become_one() -> None:
    assert "one two" in Table("t", ("a",), [("one\n  two",)]).markdown()


def test_what_is_missing_stands_below_the_table_in_both_formats() -> None:
    measured = {
        "clip_score": {"value": 31.4, "ci95": [30.0, 32.0]},
        "fid": {"missing": "reference_set=null"},
        "hps_v2": {"missing": "no model is named"},
        "pick_score": {"missing": "no model is named"},
    }
    table = metrics_table({"methods": {"policy": measured, "dpmpp-7": measured}})
    assert table.header == ("method", "CLIP score ↑")
    assert "missing fid: reference\\_set=null\n" in table.markdown()
    assert "missing hps\\_v2, pick\\_score: no model is named" in table.latex()
    assert "CLIP score $\\uparrow$" in table.latex()
    assert table.latex().index("\\end{tabular}") < table.latex().index("missing fid")
