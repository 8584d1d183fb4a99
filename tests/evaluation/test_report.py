"""The report: one file, all text escaped, true to its summary, drawn from whatever there is."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from actors.errors import UserError
from evaluation.figures import action_colour, pareto
from evaluation.headline import opening_sentence
from evaluation.report import FIGURES_FOLDER, write_report
from evaluation.run_files import read_summary, training_rows
from evaluation.strips import STRIPS_FILE
from evaluation.tables import TABLES_FOLDER
from evaluation.traces import TRACES_FILE
from evaluation.transfer import TRANSFER_FILE
from tests.evaluation import synthetic
from tests.evaluation.stored_run import write_run

HOSTILE = "<script>alert('x')</script> \"><img src=x onerror=alert(1)> {{ 7*7 }} & $\\frac{"
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Collects what a browser would run, load or show."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.sources.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"<{tag}> is not closed where it was opened"

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def test_report_opens_with_the_truth_and_shows_all_numbers(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    summary = json.loads((run_dir / "summary.json").read_text())
    reader = read(write_report(run_dir))
    first_heading = re.search(r"<h1>(.*?)</h1>", (run_dir / "report.html").read_text())
    assert first_heading
    assert first_heading[1] == opening_sentence(summary)
    for name, numbers in summary["baselines"].items():
        assert name in reader.text
        assert f"{numbers['quality']:.3f}" in reader.text
    for verdict in summary["hypotheses"].values():
        assert verdict["statement"] in reader.text
    assert reader.tags.count("figure") == 8
    assert {"look", "restart", "stop"} <= set(re.findall(r"\w+", reader.text))
    assert "0.375 less than dpmpp-10" in reader.text
    assert "What was refined" in reader.text
    assert "its widths differ" in reader.text
    for gate in ("G0", "G1", "G2", "G3", "G4"):
        assert gate in reader.text


def verdicts_of(html: str) -> dict[str, str]:
    """Outcome by the heading that it stands beside."""
    return dict(re.findall(r'(?:<h3>|<dt>)(\w+) \s*<span class="verdict \w+">([\w ]+)<', html))


def test_figures_are_files_too_and_tables_are_markdown_and_latex(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", prompt=HOSTILE)
    write_report(run_dir)
    svgs = sorted(path.stem for path in (run_dir / FIGURES_FOLDER).glob("*.svg"))
    pngs = sorted((run_dir / FIGURES_FOLDER).glob("*.png"))
    assert [path.stem for path in pngs] == svgs
    assert {"pareto_nfe", "trajectories", "nfe_per_category"} <= set(svgs)
    for path in pngs:
        with Image.open(path) as picture:
            assert picture.width > 800
    for name in ("methods", "hypotheses", "gates", "transfer", "metrics", "quality_adjusted"):
        lines = (run_dir / TABLES_FOLDER / f"{name}.md").read_text().split("\n\n")[1].splitlines()
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert len(widths) == 1, f"{name}.md: a cell broke the table"
        latex = (run_dir / TABLES_FOLDER / f"{name}.tex").read_text()
        body = latex.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in body}) == 1
        assert not re.search(r"(?<!\\)[%#_]", body[-1])
        assert latex.isascii(), f"{name}.tex: {re.findall('[^ -~]', latex)}, which LaTeX may not know"
    assert "dpmpp-10" in (run_dir / TABLES_FOLDER / "methods.md").read_text()
    assert "missing fid: no reference" in (run_dir / TABLES_FOLDER / "metrics.md").read_text()


def test_report_needs_nothing_from_outside_and_runs_nothing(tmp_path: Path) -> None:
    reader = read(write_report(write_run(tmp_path / "run")))
    assert reader.sources
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)


def test_hostile_prompts_tiers_and_run_names_are_text(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "<img src=x onerror=alert(2)>", prompt=HOSTILE, tier=HOSTILE)
    reader = read(write_report(run_dir))
    assert HOSTILE in reader.text
    assert reader.handlers == []
    assert "script" not in reader.tags
    assert all(source.startswith("data:image/") for source in reader.sources)


def test_verdicts_that_failed_or_could_not_be_tested_are_said_to_be_so(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", quality=0.5)
    summary = json.loads((run_dir / "summary.json").read_text())
    unknown = {"estimate": None, "ci95": None, "p": None, "passed": None}
    summary["hypotheses"]["H1"] |= unknown
    summary["hypotheses"]["H3"] = {**unknown, "statement": "NFE rises. Not tested: one seed each."}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    html = write_report(run_dir).read_text()
    outcomes = verdicts_of(html)
    assert {name: outcomes[name] for name in ("H1", "H2", "H3", "H4")} == {
        "H1": "not measured",
        "H2": "failed",
        "H3": "not measured",
        "H4": "not measured",
    }
    assert {name: outcomes[name] for name in ("G0", "G2", "G3", "G4")} == {
        "G0": "not measured",
        "G2": "not measured",
        "G3": "not measured",
        "G4": "passed",
    }
    assert "Nothing was saved: " in html
    summary["hypotheses"]["H2"] |= {"passed": None, "statement": "It is above. Not tested: cheap ones only."}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    html = write_report(run_dir).read_text()
    assert verdicts_of(html)["H2"] == "not measured"
    assert "Nobody knows what was saved: " in html


def test_report_without_training_strips_and_tiers(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    (run_dir / "progress.jsonl").unlink()
    for file in (STRIPS_FILE, TRACES_FILE, TRANSFER_FILE):
        (run_dir / file).unlink()
    summary = json.loads((run_dir / "summary.json").read_text())
    for method in (summary["policy"], *summary["baselines"].values()):
        method["per_tier"] = {}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    reader = read(write_report(run_dir))
    assert "Training" not in reader.text
    for title in ("Decisions, image by image", "failed most", "was refined", "on the way", "Zero-shot"):
        assert title not in reader.text
    assert "Per tier" not in reader.text


def test_torn_and_empty_lines_of_a_progress_log_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text('{"iteration": 1, "episodes": 4}\n{"iteration": 2, "episodes": 0}\n{"itera')
    assert [row["iteration"] for row in training_rows(path)] == [1]
    path.write_bytes(
        b'{"iteration": 1, "episodes": 4}\n\xe5\x00\xff no text\n{"iteration": 3, "episodes": 4}\n'
    )
    assert [row["iteration"] for row in training_rows(path)] == [1]
    assert training_rows(tmp_path / "none.jsonl") == []


def test_figures_are_the_same_bytes_for_the_same_numbers() -> None:
    summary, _ = synthetic.evaluation(0.65, prompts_per_tier=4)
    what = summary["baselines"], {"policy": summary["policy"]}, "strict score"
    assert pareto(*what, "nfe") == pareto(*what, "nfe")
    assert pareto(*what, "nfe") != pareto(*what, "cost")


def test_an_action_keeps_its_colour_whatever_its_number() -> None:
    assert action_colour("leap-2") == action_colour("leap-3") != action_colour("continue")


@pytest.mark.parametrize("content", [None, "", "[]", '{"policy": 1}', "\x00"])
def test_a_run_without_an_evaluation_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match="addiffusion evaluate") as caught:
        read_summary(tmp_path)
    assert "\n" not in str(caught.value)
