"""Tables: what means something in Markdown and LaTeX means nothing in a cell."""

import re

from evaluation.tables import Table

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


def test_lines_in_a_cell_become_one() -> None:
    assert "one two" in Table("t", ("a",), [("one\n  two",)]).markdown()
