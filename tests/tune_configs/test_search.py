"""How trials are handed out: by memory that was measured, each once, and towards what is better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.tune.search import Searcher

from tests.tune_configs.outcomes import finished, spec_of
from tune_configs.admission import FREE, GIB, GPU, MEMORY, Admission, free_memory
from tune_configs.ledger import Ledger
from tune_configs.plan import Planner
from tune_configs.search import Handout, Planned, Proposed
from tune_configs.sweep_files import as_sweep
from tune_configs.trial import OBJECTIVE
from tune_configs.trial import spec_of as handed


def report(peak_gib: float, free_gib: float, gpu: float = 0.0) -> dict[str, Any]:
    return {MEMORY: peak_gib * GIB, FREE: free_gib * GIB, GPU: gpu, OBJECTIVE: 0.5}


def test_the_first_trial_runs_alone_until_its_memory_is_known() -> None:
    admission = Admission(reserve_gib=1.0)
    assert admission.admits(0)
    assert not admission.admits(1)
    admission.learn(report(2.0, 8.0), running=1)
    assert admission.limit == 1 + 3, "(8 - 1) GiB hold three more of 2 GiB"
    assert admission.admits(3)
    assert not admission.admits(4)


def test_a_limit_follows_what_is_free_beside_those_that_run_and_is_never_raised() -> None:
    admission = Admission(reserve_gib=0.0)
    admission.learn(report(2.0, 8.0), running=1)
    admission.learn(report(2.0, 3.0), running=2)
    assert admission.limit == 3
    admission.learn(report(2.0, 100.0), running=2)
    assert admission.limit == 3
    admission.learn(report(2.0, -5.0), running=2)
    assert admission.limit == 1
    assert admission.admits(0), "one may always run"


def test_gpu_memory_machines_and_the_users_word_limit_too() -> None:
    gpus = Admission(reserve_gib=0.0, nodes=2, gpus=4.0)
    gpus.learn(report(1.0, 100.0, gpu=0.4), running=1)
    assert gpus.limit == 8, "two on each of four GPUs, whose rests are no whole"
    large = Admission(reserve_gib=0.0, nodes=2, gpus=4.0)
    large.learn(report(1.0, 100.0, gpu=1.5), running=1)
    assert large.limit == 2, "each has processes on two"
    told = Admission(reserve_gib=0.0, most=3)
    told.learn(report(1.0, 100.0), running=1)
    assert told.limit == 3
    assert 0 < free_memory() < 2**50


@pytest.mark.parametrize(
    ("limit", "used", "stat", "name"),
    [
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ],
)
def test_files_that_were_read_do_not_fill_a_container(
    tmp_path: Path, limit: str, used: str, stat: str, name: str
) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / used).write_text("900\n")
    (tmp_path / stat).write_text(f"anon 500\nactive_file 100\n{name} 300\n")
    assert free_memory(tmp_path) == 1000 - 900 + 300
    (tmp_path / limit).write_text("max\n")
    assert free_memory(tmp_path) > 1000


def test_every_trial_is_handed_out_once_and_no_more_than_may_run() -> None:
    specs = [spec_of(name) for name in "abcd"]
    handout = Handout(Planned(specs), Admission(reserve_gib=0.0))
    first = handout.suggest("1")
    assert isinstance(first, dict)
    assert handout.suggest("2") is None
    handout.on_trial_result("1", report(1.0, 1.5))
    given = [handed(first)]
    second = handout.suggest("2")
    assert isinstance(second, dict)
    given.append(handed(second))
    assert handout.suggest("3") is None
    handout.on_trial_complete("1", error=True)
    for trial in ("3", "4"):
        more = handout.suggest(trial)
        assert isinstance(more, dict)
        given.append(handed(more))
        handout.on_trial_complete(trial, report(1.0, 1.5))
    assert given == specs
    assert handout.suggest("5") == Searcher.FINISHED


def proposing(folder: Path, trials: int) -> tuple[Proposed, Ledger]:
    space = {"ppo.lr": {"uniform": [0.0001, 0.9]}, "reward.c_nfe": {"uniform": [0.0, 1.0]}}
    content = {
        "description": "x",
        "space": space,
        "searcher": "optuna",
        "trials": trials,
        "metric": "quality",
    }
    ledger = Ledger(folder)
    return Proposed(Planner(as_sweep("sweep", "x", content), ()), ledger), ledger


def quality(values: dict[str, Any]) -> float:
    """Best at 0.3 and 0.7."""
    return 1.0 - (values["ppo.lr"] - 0.3) ** 2 - (values["reward.c_nfe"] - 0.7) ** 2


def test_proposals_get_better_and_an_interrupted_search_knows_what_it_has_seen(tmp_path: Path) -> None:
    source, ledger = proposing(tmp_path, 24)
    found = []
    for _ in range(12):
        spec = source.next()
        assert spec is not None
        value = quality(spec.values)
        found.append(value)
        source.tell(spec, value)
        ledger.add(finished(spec, [value] * 2, [1.0] * 2))
    again, _ = proposing(tmp_path, 24)
    later, names = [], set()
    while (spec := again.next()) is not None:
        names.add(spec.id)
        later.append(quality(spec.values))
        again.tell(spec, later[-1])
    assert len(later) == 12
    assert not names & set(ledger.outcomes)
    assert np.mean(later) > np.mean(found[:10]) + 0.05, "ten random draws, then Parzen estimators"
