"""A population as Ray Tune runs it, with members that only count."""

from __future__ import annotations

import json
import time
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
from tests.tune_configs.outcomes import spec_of
from tune_configs.footprint import footprint, runners_footprint
from tune_configs.sweep_config import Dimension, SweepConfig
from tune_configs.trial import OBJECTIVE, SPEC, spoils_process
from tune_configs.tuner import Population, Recorder

ITERATIONS = 6
PATIENCE_S = 400.0
"""For processes to start, on a machine that has much else to do."""


def population(**changes: Any) -> SweepConfig:
    space = {"ppo.lr": Dimension(loguniform=(1e-4, 1e-2)), "reward.c_nfe": Dimension(uniform=(0.01, 0.02))}
    return SweepConfig("Counts.", space=space, scheduler="pbt", perturbation_interval=2, **changes)


class Member(tune.Trainable):
    """Counts to `ITERATIONS`; "gives_up" ends itself at 2 and "raises" at 4, when all others have paused."""

    def setup(self, config: dict[str, Any], folder: Path) -> None:
        self._folder = folder
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._name = json.loads(new_config[SPEC])["labels"][0]
        self._count = 0
        return True

    def step(self) -> dict[str, Any]:
        self._count += 1
        self._log("reached", self._count)
        if (self._name, self._count) in (("told/gives_up", 2), ("told/raises", 4)):
            others = {"told/good", "told/better"} | ({"told/raises"} if self._count == 2 else set())
            deadline = time.monotonic() + PATIENCE_S
            while len(list(self._folder.glob(f"saved-*-{self._count}"))) < len(others):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            if self._name == "told/raises":
                raise OSError("no space")
            return {"iteration": self._count, "status": "failed", "error": "X: gave up", "done": True}
        ended = self._count == ITERATIONS
        watched = {"utility": 0.5, "quality": 0.6, "nfe": 7.0, "cost": 7.0}
        report = {
            "iteration": self._count,
            "watched": watched,
            OBJECTIVE: 2.0 if "better" in self._name else 1.0,
        }
        return report | ({"status": "finished", "done": True} if ended else {})

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "count").write_text(str(self._count))
        self._log("saved", self._count)

    def load_checkpoint(self, checkpoint: Any) -> None:
        self._count = int((Path(checkpoint) / "count").read_text())

    def _log(self, what: str, count: int) -> None:
        (self._folder / f"{what}-{self._name.rpartition('/')[2]}-{count}").touch()


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
        tune.with_resources(tune.with_parameters(Member, folder=tmp_path), {"CPU": 0.5}),
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
