"""`addiffusion front`: a sweep's policies by variant, runs by name, and mistakes in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster.conftest import Say
from tests.cluster.serving.world import saved_run
from tests.tune_configs.outcomes import finished, spec_of
from tune_configs.ledger import Ledger

SMALL = (
    "evaluation.prompts_per_tier=1",
    "evaluation.seeds=1",
    "evaluation.baselines=[dpmpp-3,dpmpp-5]",
    "evaluation.resamples=200",
    "evaluation.workers=1",
)


def write_sweep(runs: Path) -> None:
    """Two variants, one with two training seeds; a third's only trial failed, a fourth left no policy."""
    ledger = Ledger(runs / "prices")
    for number, (variant, seed) in enumerate((("dear", 0), ("dear", 1), ("cheap", 0))):
        spec = spec_of(variant, seed)
        saved_run(runs / "prices", spec.id, number)
        ledger.add(finished(spec, [0.5, 0.6], [7.0, 8.0]))
    ledger.add(finished(spec_of("dpmpp-7"), [0.5], [7.0]))
    ledger.add(replace(finished(spec_of("dearest", 0), [0.1], [1.0]), status="failed", measured=None))


def test_a_sweep_stands_for_its_finished_trials_and_a_run_for_itself(say: Say, folder: Path) -> None:
    write_sweep(folder / "runs")
    saved_run(folder / "runs", "alone", 3)
    code, out, err = say("front", "prices", "alone", *SMALL, "--out", "drawn")
    assert (code, "error" in err) == (0, False), err
    front = json.loads((folder / "drawn/front.json").read_text())
    assert {name: len(one["trainings"]) for name, one in front["policies"].items()} == {
        "dear": 2,
        "cheap": 1,
        "alone": 1,
    }
    assert set(front["baselines"]) == {"dpmpp-3", "dpmpp-5"}
    lines = out.splitlines()
    assert lines[-1] == "front: drawn/front.png"
    assert lines[-2].startswith("0 of 3 policies are shown to be better")
    assert (folder / "drawn/front.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "runs/images").is_dir(), "images are where every evaluation finds them"
    assert not (folder / "runs/prices/images").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], ["nothing", "name@alias"]),
        (["evaluation.seeds=1"], ["POLICIES"]),
        (["prices", "evaluation.seedz=1"], ["evaluation.seedz", "evaluation.seed"]),
        (["prices", "evaluation.baselines=[fly-3]"], ["fly-3"]),
        (["unfinished"], ["unfinished", "none of its trials has finished"]),
    ],
)
def test_a_mistake_is_one_line(say: Say, folder: Path, arguments: list[str], words: list[str]) -> None:
    write_sweep(folder / "runs")
    Ledger(folder / "runs/unfinished").add(
        replace(finished(spec_of("a"), [0.1], [1.0]), status="failed", measured=None)
    )
    code, out, err = say("front", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    for word in words:
        assert word in err
