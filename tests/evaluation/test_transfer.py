"""Zero-shot transfer on the fake world: each cell is what an evaluation there says, and none is hidden."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.engine import EngineConfig
from actors.errors import UserError
from evaluation.bench import Bench
from evaluation.config import EvaluationConfig
from evaluation.evaluate import Conditions, evaluate
from evaluation.gates import transfer_gate
from evaluation.transfer import SHARE, TRANSFER_FILE, places, read_transfer, transfer, transfer_table
from tests.evaluation.fakes import ENGINE, FakeBackbone, open_fake_bench, saved_policy

CONFIG = EvaluationConfig(
    prompts_per_tier=2,
    seeds=1,
    baselines=("dpmpp-5", "best-of-2@5"),
    resamples=100,
    slots=8,
    strips=0,
    traced=0,
    workers=1,
)


def recipe(backbone: Any, config: EvaluationConfig) -> Any:
    """A world of its own for every backbone; one called "wide" does not fit the policy."""
    bench = replace(open_fake_bench(), outputs=("image_reward", "clip_score"))
    if backbone.name == "fake":
        return lambda: bench
    other = FakeBackbone(identity=f"{backbone.name}-2", feature_dim=5 if backbone.name == "wide" else 3)
    return lambda: replace(bench, backbone=other, identity=backbone.name)


def test_a_cell_is_what_an_evaluation_under_its_conditions_says(tmp_path: Path) -> None:
    folder = saved_policy(tmp_path / "policy")
    cells = transfer(
        folder,
        tmp_path / "run",
        CONFIG,
        backbones=["", "other", "wide"],
        solvers=[("dpmpp", 6), ("ddim", 8)],
        datasets=["shapes"],
        recipe=recipe,
    )
    assert [(cell.backbone, cell.solver, cell.own_backbone) for cell in cells] == [
        ("fake", "dpmpp-6", True),
        ("fake", "ddim-8", True),
        ("other", "dpmpp-6", False),
        ("other", "ddim-8", False),
        ("wide", "dpmpp-6", False),
        ("wide", "ddim-8", False),
    ]
    assert cells == read_transfer(tmp_path / "run")
    alone: Bench = recipe(type("Own", (), {"name": "fake"}), CONFIG)()
    expected = evaluate(
        folder,
        tmp_path / "alone",
        replace(CONFIG, baselines=(*(f"ddim-{steps}" for steps in (5, 7, 10, 15, 20, 50)), "best-of-2@5")),
        recipe=lambda *_: lambda: alone,
        conditions=Conditions("ddim", 8),
    )
    cell = cells[1]
    assert (cell.quality, cell.nfe) == (expected["policy"]["quality"], expected["policy"]["nfe"])
    assert cell.lead is not None
    assert cell.lead[0] == expected["hypotheses"]["H2"]["estimate"]
    assert cell.clip_ratio is not None
    assert cell.clip_ratio[1] <= cell.clip_ratio[0] <= cell.clip_ratio[2]
    for failed in cells[4:]:
        assert failed.lead is None
        assert failed.failed is not None
        assert "feature_dim 3, this one's is 5" in failed.failed
    markdown = transfer_table(cells).markdown()
    assert markdown.count("feature\\_dim 3") == 2
    assert markdown.count("fake (own)") == 2


def test_the_policys_own_weights_are_no_other_backbone_whatever_they_are_called(tmp_path: Path) -> None:
    bench = replace(open_fake_bench(), outputs=("image_reward", "clip_score"))
    (cell,) = transfer(
        saved_policy(tmp_path / "policy"),
        tmp_path / "run",
        replace(CONFIG, resamples=1_000),
        backbones=["a/copy/of/fake"],
        solvers=[("dpmpp", 6)],
        datasets=["shapes"],
        recipe=lambda backbone, config: lambda: bench,
    )
    assert cell.own_backbone
    assert transfer_gate([cell]).passed is None
    assert cell.clip_ratio is not None
    assert cell.clip_p is not None
    assert (cell.clip_p < 0.025) is (cell.clip_ratio[1] > SHARE)


def test_without_a_matrix_there_are_no_cells_and_a_damaged_one_is_one_line(tmp_path: Path) -> None:
    assert read_transfer(tmp_path) == []
    path = tmp_path / TRANSFER_FILE
    path.parent.mkdir()
    for content in ("[", '{"backbone": 1}', '[{"back": 1}]'):
        path.write_text(content)
        with pytest.raises(UserError, match="addiffusion transfer"):
            read_transfer(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("dpmpp", 6)]),
        ("ddim", [("ddim", 6)]),
        ("dpmpp-10,ddim-20", [("dpmpp", 10), ("ddim", 20)]),
        ("flow_euler-4", [("flow_euler", 4)]),
    ],
)
def test_solvers_as_the_command_line_says_them(text: str, expected: list[tuple[str, int]]) -> None:
    assert places(text, ENGINE) == expected


@pytest.mark.parametrize("text", ["heun", "ddim-0", "ddim-", "ddim 5"])
def test_another_solver_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="--solvers"):
        places(text, EngineConfig())
