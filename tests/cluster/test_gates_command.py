"""`addiffusion baselines`, `gates` and `transfer`: what they print, and mistakes as one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.baselines import FAMILIES
from evaluation.rows import IMAGES_FILE, write_rows
from tests.cluster.conftest import Say
from tests.evaluation import synthetic


def test_every_baseline_is_listed_and_bounds_are_called_so(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = say("baselines", "list")
    assert code == 0
    for family in FAMILIES.values():
        (line,) = [line for line in out.splitlines() if line.startswith(f"{family.form} ")]
        assert ("bound: " in line) is family.bound


def test_gates_prints_all_nine_with_what_is_next(say: Say, trained_run: Path) -> None:
    summary, rows = synthetic.evaluation(0.66, prompts_per_tier=6)
    (trained_run / "summary.json").write_text(json.dumps(summary))
    write_rows(trained_run / IMAGES_FILE, rows)
    code, out, _ = say("gates", "earlier")
    assert code == 0
    for name in ("G0", "G1", "G2", "G3", "G4", "H1", "H2", "H3", "H4"):
        assert any(line.startswith(name) for line in out.splitlines())
    assert out.count("next: ") == 9
    code, out, _ = say("gates", "earlier", "--json")
    found = {gate["name"]: gate for gate in json.loads(out)}
    assert found["H1"]["passed"] is summary["hypotheses"]["H1"]["passed"]
    assert found["G0"]["passed"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gates", "nothing"], ["nothing"]),
        (["gates", "earlier"], ["addiffusion evaluate"]),
        (["transfer", "nothing"], ["nothing"]),
        (["transfer", "earlier", "--prompts", "shapes,nofile"], ["--prompts", "nofile"]),
        (["baselines", "run", "heun-10", "evaluation=quick"], ["heun-10", "unipc-N"]),
        (["baselines", "run", "", "evaluation=quick"], ["evaluation.baselines"]),
        (["baselines", "run", "ddim-4", "solver=flow_euler"], ["ddim-4", "euler-N"]),
        (["baselines", "fit-adadiff", "steps.bin"], ["steps.bin", ".safetensors"]),
        (["baselines", "fit-adadiff", "steps.safetensors", "--prompts", "1"], ["--prompts"]),
    ],
)
def test_a_mistake_is_one_line(say: Say, trained_run: Path, arguments: list[str], words: list[str]) -> None:
    code, _, err = say(*arguments)
    assert code == 2
    assert err.count("\n") == 1
    for word in words:
        assert word in err
