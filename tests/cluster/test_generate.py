from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cluster.conftest import Say
from tests.evaluation.fakes import open_fake_bench, saved_policy
from tune_configs.loading import compose


@pytest.fixture
def policy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/fake: a policy on the evaluation tests' backbone, which has a closed form."""
    monkeypatch.setattr("evaluation.bench.bench_recipe", lambda backbone, config: open_fake_bench)
    run_dir = folder / "runs" / "fake"
    policy_dir = saved_policy(run_dir / "policy")
    (run_dir / "config.yaml").write_text(compose(["name=fake"]).to_yaml(), encoding="utf-8")
    return policy_dir


def test_the_picture_and_every_decision_are_there(say: Say, folder: Path, policy: Path) -> None:
    code, out, _ = say("generate", "a dog", "--model", "fake", "--seed", "3", "--out", "dog.png")
    assert code == 0
    assert Image.open(folder / "dog.png").mode == "RGB"
    assert "decision" in out
    *_, last_decision, summary = out.splitlines()
    assert last_decision.split()[-1] == "stop"
    assert summary.startswith("dog.png: ")
    assert sorted(path.name for path in folder.iterdir()) == ["dog.png", "runs"]


def test_the_newest_run_is_used_and_one_seed_gives_one_picture(say: Say, folder: Path, policy: Path) -> None:
    assert say("generate", "a dog", "--out", "a.png")[0] == 0
    assert say("generate", "a dog", "--out", "b.png", "--model", str(policy))[0] == 0
    assert say("generate", "a dog", "--out", "c.png", "--seed", "1")[0] == 0
    pictures = [np.asarray(Image.open(folder / name)) for name in ("a.png", "b.png", "c.png")]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_the_budget_holds(say: Say, policy: Path) -> None:
    _, out, _ = say("generate", "a dog", "--max-nfe", "4")
    summary = out.splitlines()[-1]
    assert int(summary.split("NFE ")[1].split(",")[0]) <= 4


def test_a_full_disk_leaves_no_half_picture(
    say: Say, folder: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(image: Image.Image, path: Path, kind: str) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", save)
    code, out, err = say("generate", "a dog", "--out", "dog.png")
    assert (code, out) == (2, "")
    assert err.startswith("error: no space left on device")
    assert err.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["runs"]


def test_a_registered_model_that_is_not_there_is_one_line(say: Say, folder: Path) -> None:
    code, _, err = say("generate", "a dog", "--model", "addiffusion-shapes@champion")
    assert code == 2
    assert "addiffusion-shapes@champion" in err
    assert err.count("\n") == 1
    assert list(folder.iterdir()) == []
