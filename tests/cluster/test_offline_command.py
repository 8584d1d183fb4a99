"""`addiffusion offline`, from stored episodes of the toy world to a policy's folder; dpo needs no Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from actors.policy_folder import read_trained_policy
from tests.cluster.conftest import Say
from tests.learner.stored import gather, store, tossing


@pytest.fixture
def stored(folder: Path) -> Path:
    (folder / "runs").mkdir(exist_ok=True)
    return store(gather(tossing, folder, 128, seed=1, seeds=4), folder / "runs" / "toy" / "trajectories")


def test_what_it_makes_is_named_and_never_written_over(say: Say, stored: Path, folder: Path) -> None:
    options = ["algorithm=dpo", "trajectories=runs/toy", "registry.enabled=false", "hidden=[8]"]
    options += ["iterations=2", "updates_per_iteration=2", "minibatch_size=32", "held_out=0.3"]
    for name in ("offline", "offline-2"):
        code, out, _ = say("offline", *options)
        assert code == 0
        assert "iteration 2/2 · dpo loss" in out
        assert out.endswith(f"how good it is: addiffusion evaluate runs/{name}\n")
        assert read_trained_policy(folder / "runs" / name / "policy").backbone_identity == "toy"
    code, _, err = say("offline", *options, "name=offline")
    assert code == 2
    assert err.startswith("error: name=offline: runs/offline holds a run already")


def test_a_dry_run_prints_every_option_and_makes_nothing(say: Say, stored: Path, folder: Path) -> None:
    code, out, _ = say("offline", "trajectories=runs/toy", "lr=0.01", "--dry-run")
    assert code == 0
    assert yaml.safe_load(out)["lr"] == 0.01
    assert [path.name for path in (folder / "runs").iterdir()] == ["toy"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["trajectories=nowhere"], "trajectories=nowhere: no origin.json there"),
        (["trajectories=runs/toy", "algorithm=iql"], "algorithm='iql': give one of bc, marwil, dpo"),
        (["lr=1e-3"], "trajectories is empty"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    say: Say, stored: Path, folder: Path, options: list[str], said: str
) -> None:
    code, _, err = say("offline", *options)
    assert code == 2
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert [path.name for path in (folder / "runs").iterdir()] == ["toy"]
