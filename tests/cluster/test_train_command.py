from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from actors.errors import UserError
from learner.config import RunConfig
from learner.guards import TrainingFailure
from learner.run_lock import RunIsBusyError
from learner.train import TrainResult
from tests.cluster.conftest import Say


class Calls:
    """Stands in for training, evaluation and report, and keeps what they were given."""

    def __init__(self, ended: str) -> None:
        self.ended = ended
        self.trained: list[tuple[RunConfig, Path | None]] = []
        self.evaluated: list[tuple[Path, Path, int]] = []

    def train(self, config: RunConfig, *, resume: Path | None, progress: object) -> TrainResult:
        self.trained.append((config, resume))
        run_dir = resume or config.run_dir
        return TrainResult(run_dir, run_dir / "policy", "7", config.ppo.iterations, 1.0, self.ended)

    def evaluate(
        self, policy_dir: Path, run_dir: Path, config: Any, *_: object, **__: object
    ) -> dict[str, Any]:
        self.evaluated.append((policy_dir, run_dir, config.seeds))
        return {}


@pytest.fixture(params=["finished"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Calls:
    recorded = Calls(request.param)
    monkeypatch.setattr("learner.train.train", recorded.train)
    monkeypatch.setattr("evaluation.evaluate.evaluate", recorded.evaluate)
    monkeypatch.setattr("evaluation.headline.opening_sentence", lambda summary: "Nothing was saved.")
    monkeypatch.setattr("evaluation.report.write_report", lambda run_dir: run_dir / "report.html")
    return recorded


def test_train_goes_on_to_evaluation_and_says_where_the_report_is(say: Say, calls: Calls) -> None:
    code, out, _ = say("train", "name=mine", "seed=5", "evaluation.seeds=2")
    assert code == 0
    ((config, resume),) = calls.trained
    assert (config.name, config.seed, resume) == ("mine", 5, None)
    run_dir = Path("runs/mine").absolute()  # another node, where the evaluation may go, has another folder
    assert calls.evaluated == [(run_dir / "policy", run_dir, 2)]
    assert "version 7" in out
    assert "Nothing was saved." in out
    assert out.endswith("report: runs/mine/report.html\n")


def test_resume_hands_the_earlier_folder_on(say: Say, calls: Calls, trained_run: Path) -> None:
    assert say("train", "--resume", "earlier")[0] == 0
    ((config, resume),) = calls.trained
    assert (config.name, resume) == ("earlier", Path("runs/earlier"))


@pytest.mark.parametrize("calls", ["interrupted"], indirect=True)
def test_an_interrupted_run_says_how_to_go_on_and_is_not_evaluated(say: Say, calls: Calls) -> None:
    code, out, _ = say("train", "name=mine")
    assert code == 130
    assert "addiffusion train --resume runs/mine" in out
    assert calls.evaluated == []


@pytest.mark.parametrize(("trained", "left"), [(False, []), (True, ["mine"])])
def test_a_run_that_fails_before_its_first_policy_leaves_nothing(
    say: Say, folder: Path, monkeypatch: pytest.MonkeyPatch, trained: bool, left: list[str]
) -> None:
    def train(config: RunConfig, **_: object) -> NoReturn:
        (config.run_dir / "policy" if trained else config.run_dir).mkdir(parents=True)
        raise UserError("backbone='nothing': cannot be loaded; give shapes")

    monkeypatch.setattr("learner.train.train", train)
    code, _, err = say("train", "name=mine")
    assert (code, err) == (2, "error: backbone='nothing': cannot be loaded; give shapes\n")
    assert [path.name for path in (folder / "runs").iterdir()] == left


def test_what_another_process_has_begun_meanwhile_is_not_tidied_up(
    say: Say, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: RunConfig, **_: object) -> NoReturn:
        config.run_dir.mkdir(parents=True)  # the other one
        raise RunIsBusyError("run runs/mine: another process is training it")

    monkeypatch.setattr("learner.train.train", train)
    code, _, err = say("train", "name=mine")
    assert (code, err) == (2, "error: run runs/mine: another process is training it\n")
    assert (folder / "runs" / "mine").is_dir()


def test_a_training_that_cannot_go_on_says_why_in_one_line(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: RunConfig, **_: object) -> NoReturn:
        raise TrainingFailure("the checkpoint of iteration 4 could not be written", "disk")

    monkeypatch.setattr("learner.train.train", train)
    code, _, err = say("train", "name=mine")
    assert (code, err) == (1, "error: the checkpoint of iteration 4 could not be written\n")


def test_a_full_disk_is_found_before_anything_starts(
    say: Say, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=3_000_000))
    code, _, err = say("train", "name=mine", "runs_dir=elsewhere")
    assert code == 2
    assert err == ("error: runs_dir=elsewhere: 3 MB free on its disk; give a folder with at least 200 MB\n")
    assert not calls.trained
    assert not Path("elsewhere").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("backbone.scorers=nowhere",), "backbone.scorers=nowhere: no 'clip' in it"),
        (("evaluation.scorers=nowhere",), "evaluation.scorers=nowhere: no 'clip' in it"),
        (
            ("backbone=sd15", "backbone.scorers.aesthetic.head=head.pth"),
            "backbone.scorers.aesthetic.head=head.pth: no such file",
        ),
        (
            ("backbone=sd15", "reward=balanced", "backbone.scorers.dino=null"),
            "backbone.scorers.dino=null: give a section, as 'dino' is asked for",
        ),
    ],
)
def test_reward_models_that_are_not_there_are_found_before_anything_starts(
    say: Say, calls: Calls, folder: Path, options: tuple[str, ...], said: str
) -> None:
    code, _, err = say("train", *options)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("backbone.device=gpu",), "backbone.device is 'gpu'; accepted: cpu, cuda, "),
        (("evaluation.device=gpu",), "evaluation.device=gpu: give cpu, cuda, "),
        (("backbone.device=cuda",), "backbone.device=cuda: no GPU is here; give backbone.device=cpu, or "),
        (("evaluation.device=cuda:1",), "evaluation.device=cuda:1: no GPU is here; give evaluation.device=c"),
    ],
)
def test_devices_that_are_not_there_are_told_before_training(
    say: Say,
    calls: Calls,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = say("train", *options)
    assert code == 2
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    assert list(folder.iterdir()) == []
    on_a_cluster = ("resources=cluster", "backbone.device=cuda", "evaluation.device=cpu")
    assert say("train", *on_a_cluster)[0] == 0  # its nodes may have GPUs
    assert len(calls.trained) == 1


def test_too_few_prompts_to_compare_on_are_told_before_training(say: Say, folder: Path, calls: Calls) -> None:
    (folder / "mine.txt").write_text("a red circle\na blue star\n")
    options = ["prompts=file", "prompts.source=mine.txt", "evaluation.prompts=mine.txt", "watch.every=0"]
    code, _, err = say("train", *options, "evaluation.prompts_per_tier=1")
    assert code == 2
    assert err == "error: evaluation.prompts=mine.txt: give at least two different prompts\n"
    assert calls.trained == []
    assert say("train", *options)[0] == 0
