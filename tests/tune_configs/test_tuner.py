"""A population as Ray Tune runs it, with members that only count."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray import tune

from actors.errors import UserError
from actors.memo import Memo, Scored
from learner.guards import TrainingFailure
from tests.tune_configs.counting import ITERATIONS, Member
from tests.tune_configs.outcomes import spec_of
from tune_configs.footprint import footprint, runners_footprint
from tune_configs.sweep_config import Dimension, SweepConfig
from tune_configs.trial import OBJECTIVE, SPEC, spoils_process
from tune_configs.tuner import Population, Recorder


def population(**changes: Any) -> SweepConfig:
    space = {"ppo.lr": Dimension(loguniform=(1e-4, 1e-2)), "reward.c_nfe": Dimension(uniform=(0.01, 0.02))}
    return SweepConfig("Counts.", space=space, scheduler="pbt", perturbation_interval=2, **changes)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(900)
def test_a_population_goes_on_without_members_that_give_up_or_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for them when they end, at one exchange and at the next."""
    monkeypatch.setenv("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # as sweeps do
    kept: list[Any] = []
    ledger: Any = SimpleNamespace(add=kept.append)
    names = ("good", "better", "gives_up", "raises")
    first: dict[str, Any] = {"ppo.lr": 1e-3, "reward.c_nfe": 0.015}
    specs = [json.dumps(asdict(spec_of(name, **first))) for name in names]
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(Member, folder=tmp_path, spec=SPEC, objective=OBJECTIVE), {"CPU": 0.5}
        ),
        param_space={SPEC: tune.grid_search(specs), **first},
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE,
            mode="max",
            scheduler=Population(population(trials=4)),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(tmp_path),
            callbacks=[Recorder(ledger, lambda line: None, 4)],
            verbose=0,
        ),
    )
    tuner.fit()
    outcomes = {outcome.spec.labels[0].rpartition("/")[2]: outcome for outcome in kept}
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "good": "finished",
        "better": "finished",
        "gives_up": "failed",
        "raises": "failed",
    }
    assert outcomes["raises"].error == "OSError: no space"
    assert outcomes["gives_up"].error == "X: gave up"
    assert outcomes["better"].spec.values == first, "nobody takes over the best one"
    assert outcomes["good"].spec.values != first, "it is known by what it was trained with last"
    for name in ("good", "better"):
        assert (tmp_path / f"reached-{name}-{ITERATIONS}").exists()


def test_what_a_population_changes_stays_within_its_bounds() -> None:
    config = population()
    scheduler = Population(config)
    at_the_edge: Any = SimpleNamespace(config={SPEC: "other", "ppo.lr": 1e-2, "reward.c_nfe": 0.01})
    member: Any = SimpleNamespace(config={SPEC: "own", "ppo.lr": 1e-3, "reward.c_nfe": 0.015})
    changed = [scheduler._get_new_config(member, at_the_edge)[0] for _ in range(50)]
    assert {one[SPEC] for one in changed} == {"own"}
    assert all(1e-4 <= one["ppo.lr"] <= 1e-2 for one in changed)
    assert all(0.01 <= one["reward.c_nfe"] <= 0.02 for one in changed)
    assert {one["ppo.lr"] for one in changed} > {1e-2}, "some would have gone further"


@pytest.mark.parametrize(
    ("error", "on_gpu"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDNN_STATUS_EXECUTION_FAILED"), True),
        (TrainingFailure("not finite", "not_finite"), False),
        (UserError("engine.refine_head: no such file"), False),
        (ValueError("shapes differ"), False),
        (OSError("no space left"), False),
    ],
)
def test_only_what_may_have_broken_the_gpu_costs_a_process(
    error: Exception, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert spoils_process(error) is on_gpu
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert not spoils_process(error)


def test_every_memo_of_a_process_counts_as_full() -> None:
    calls, scores = Memo[Scored](1.0), Memo[Scored](0.25)
    calls.keep(["key"], [Scored({"clip": np.zeros(1000, np.float32)})])
    found = footprint([calls, None, scores])
    assert found.to_come == 1.25 * 2**20 - 4000
    assert found.resident > 2**20
    collector = SimpleNamespace(engine=SimpleNamespace(memo=calls), memo=scores)
    assert runners_footprint(SimpleNamespace(collector=collector)).to_come == found.to_come
    assert runners_footprint(SimpleNamespace(collector=None)).to_come == 0
