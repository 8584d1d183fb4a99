"""`addiffusion tune` but for the trials themselves, which tests/tune_configs/test_sweep.py runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from learner.registration import Result
from tests.cluster.conftest import Say
from tests.tune_configs.outcomes import finished
from tune_configs.ledger import Ledger, Outcome, is_done
from tune_configs.plan import run_config
from tune_configs.sweep import Prepared, write_sweep

UTILITY = {
    **{"lr=0.0001": 0.3, "lr=0.0003": 0.5, "lr=0.001": 0.4},
    **{"with_leap": 0.5, "no_refine": 0.4, "efficiency_heavy": 0.3},
}
"""By variant, also where `--long` has put its part's name before it."""
UNTRACKED = "registry.enabled=false"


class Trials:
    """Stands in for the engine room: ends trials as told, as far as they are not done."""

    def __init__(self) -> None:
        self.limit = 100
        self.failing: set[str] = set()
        self.ran: list[str] = []
        self.seen: list[Prepared] = []

    def __call__(self, prepared: Prepared, report: Callable[[str], None]) -> dict[str, Outcome]:
        write_sweep(prepared)
        self.seen.append(prepared)
        ledger = Ledger(prepared.folder)
        for spec in [spec for spec in prepared.specs if not is_done(ledger.outcomes, spec)][: self.limit]:
            self.ran.append(spec.id)
            if spec.id in self.failing:
                ledger.add(Outcome(spec, "failed", error="RuntimeError: no luck"))
                continue
            name = spec.labels[0].rpartition("/")[2]
            level = UTILITY.get(name.split("-")[-1], 0.1)
            ledger.add(finished(spec, [level, level + 0.1, level - 0.1], [4.0, 5.0, 6.0]))
            Result("finished", 8, 1.0).write(prepared.folder / spec.id)
        return ledger.outcomes


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    stands_in = Trials()
    monkeypatch.setattr("cluster.tune_command.run_sweep", stands_in)
    return stands_in


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "tune: give one of sweep=asha|lr|optuna"),
        (["sweep=lr", "ablation=A1"], "tune: give one of sweep="),
        (["sweep=lrr"], "sweep='lrr': give one of asha, lr"),
        (["ablation=A9"], "ablation='A9': give one of A1, A2, A3, A4, A5, all"),
        (["sweep=lr", "sweep.metric=speed"], "sweep.metric='speed': give one of utility, quality, nfe, cost"),
        (["sweep=lr", "ppo.lrr=1"], "unknown option 'ppo.lrr'; did you mean 'ppo.lr'?"),
        (["sweep=lr", "backbone.scorers=nowhere"], "backbone.scorers=nowhere"),
        (
            ["ablation=A4"],
            "A4/learned: engine.refine_head=runs/head.safetensors: no such file; make it with: python",
        ),
        (
            [
                *("sweep=reward", "backbone=sd15", "backbone.scorers.dino=null", "reward.alpha.stability=0"),
                "observation.look_scores=[image_reward]",
                "sweep.variants={seeing: ['observation.look_scores=[image_reward,dino]']}",
            ],
            "reward/seeing: backbone.scorers.dino=null: give a section, as 'dino' is asked for",
        ),
        (["sweep=lr", "name=a/b"], "name='a/b': give a folder name without '/'"),
        (["sweep=lr", "seed=5"], "seed=5: trials are seeded by the sweep; give sweep.seeds=[5]"),
        (["--resume", "gone"], "sweep 'gone': not found in runs; there is none yet"),
        (["--long", "gone"], "sweep 'gone': not found in runs"),
        (["--resume", "one", "--long", "other"], "--long: give it or --resume, not both"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(
    say: Say, folder: Path, trials: Trials, arguments: list[str], said: str
) -> None:
    code, _, err = say("tune", *arguments)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert not trials.seen
    assert list(folder.iterdir()) == []


def test_a_gpu_that_is_not_here_is_told_before_the_first_trial(
    say: Say, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = say("tune", "sweep=lr", "evaluation.device=cuda")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: evaluation.device=cuda: no GPU is here; give evaluation.device=cpu")
    assert not trials.seen
    assert say("tune", "sweep=lr", "evaluation.device=cuda", "--dry-run")[0] == 0


def test_a_dry_run_names_the_trials_and_makes_nothing(say: Say, folder: Path, trials: Trials) -> None:
    code, out, _ = say("tune", "sweep=lr", "ppo.iterations=7", "--dry-run")
    assert code == 0
    assert [line.partition(" ")[0] for line in out.splitlines()] == [
        "lr-lr=0.0001-s0",
        "lr-lr=0.0003-s0",
        "lr-lr=0.001-s0",
    ]
    assert all("ppo.iterations=7" in line for line in out.splitlines())
    assert list(folder.iterdir()) == []


def test_a_dry_run_of_a_search_says_what_it_would_search(say: Say, folder: Path, trials: Trials) -> None:
    code, out, _ = say("tune", "sweep=optuna", "ppo.iterations=7", "sweep.trials=5", "--dry-run")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("5 trials that optuna proposes: resources=trial")
    assert lines[0].endswith("ppo.iterations=7")
    assert "  reward.c_nfe: loguniform [0.002, 0.05]" in lines
    assert list(folder.iterdir()) == []


def test_a_sweep_leaves_its_tables_and_a_second_one_a_folder_of_its_own(
    say: Say, folder: Path, trials: Trials
) -> None:
    code, out, _ = say("tune", "sweep=lr", UNTRACKED)
    assert code == 0
    assert out.endswith("report: runs/lr/report.html\n")
    made = {path.name for path in (folder / "runs" / "lr").iterdir()}
    assert {"sweep.yaml", "trials.jsonl", "results.csv", "results.md", "results.tex", "report.html"} <= made
    assert say("tune", "sweep=lr", UNTRACKED)[0] == 0
    assert [prepared.folder.name for prepared in trials.seen] == ["lr", "lr-2"]
    code, _, err = say("tune", "sweep=lr", "name=lr")
    assert (code, err) == (2, "error: name=lr: runs/lr exists; --resume lr goes on with a sweep\n")


def test_an_interrupted_sweep_says_how_to_go_on_and_does(say: Say, folder: Path, trials: Trials) -> None:
    trials.limit = 1
    words = ["sweep=lr", "sweep.seeds=[0]", "ppo.iterations=7", UNTRACKED, "name=mine"]
    code, out, _ = say("tune", *words)
    assert code == 130
    assert "1 of 3 trials have ended; go on with: addiffusion tune --resume mine" in out
    code, out, _ = say("tune", "--resume", "mine", "--dry-run")
    assert code == 0
    assert [line.partition(" ")[0] for line in out.splitlines()] == ["lr-lr=0.0003-s0", "lr-lr=0.001-s0"]
    trials.limit = 100
    assert say("tune", "--resume", "mine")[0] == 0
    told = unescape((folder / "runs/mine/report.html").read_text())
    assert f"addiffusion tune {shlex.join(words)}" in told
    assert len(trials.ran) == len(set(trials.ran)) == 3
    assert trials.seen[1].base.ppo.iterations == 7
    code, _, err = say("tune", "--resume", "mine", "ppo.lr=1")
    assert (code, err) == (2, "error: ppo.lr=1: a sweep that exists keeps its options; give --resume alone\n")


def test_ctrl_c_outside_of_tune_leaves_tables_and_says_how_to_go_on(
    say: Say, folder: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(prepared: Prepared, report: Callable[[str], None]) -> None:
        trials(prepared, report)
        raise KeyboardInterrupt

    trials.limit = 1
    monkeypatch.setattr("cluster.tune_command.run_sweep", run)
    code, out, _ = say("tune", "sweep=lr", UNTRACKED)
    assert code == 130
    assert out.endswith("1 of 3 trials have ended; go on with: addiffusion tune --resume lr\n")
    assert (folder / "runs/lr/results.md").is_file()


def test_a_sweep_elsewhere_is_gone_on_with_by_its_path(say: Say, trials: Trials) -> None:
    trials.limit = 1
    code, out, _ = say("tune", "sweep=lr", UNTRACKED, "name=mine", "runs_dir=elsewhere")
    assert code == 130
    told = next(line for line in out.splitlines() if "go on with: addiffusion " in line)
    trials.limit = 100
    assert say(*shlex.split(told.partition("go on with: addiffusion ")[2]))[0] == 0


def test_a_failed_trial_is_in_the_table_and_in_the_exit_code(say: Say, folder: Path, trials: Trials) -> None:
    trials.failing = {"lr-lr=0.0003-s0"}
    code, out, _ = say("tune", "sweep=lr", UNTRACKED)
    assert code == 1
    assert "1 of 3 failed; try them again: addiffusion tune --resume lr" in out
    assert "RuntimeError: no luck" in (folder / "runs/lr/results.md").read_text()
    trials.failing = set()
    assert say("tune", "--resume", "lr")[0] == 0
    assert trials.ran[-1] == "lr-lr=0.0003-s0"


def test_the_best_are_trained_for_long_and_the_best_of_them_goes_to_the_gate(
    say: Say, folder: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def register(run_dir: Path) -> str:
        asked.append(run_dir)
        return "3"

    def gate(champions: Any, model: str, *_: Any, **__: Any) -> int:
        asked.append(model)
        return 1

    monkeypatch.setattr("cluster.tune_command.register_run", register)
    monkeypatch.setattr("cluster.tune_command.Champions", lambda uri: uri)
    monkeypatch.setattr("cluster.tune_command.promote_version", gate)
    assert say("tune", "sweep=lr", "sweep.promoted=2", "ppo.iterations=7", UNTRACKED)[0] == 0
    code, out, _ = say("tune", "--long", "lr", "ppo.num_epochs=2")
    assert code == 1, "the gate's"
    longer = trials.seen[1]
    configs = [run_config(spec.overrides) for spec in longer.specs]
    assert [config.ppo.lr for config in configs] == [3e-4, 1e-3], "the two best, the best first"
    assert {config.ppo.iterations for config in configs} == {200}
    assert {config.ppo.num_epochs for config in configs} == {2}
    assert asked == [Path("runs/lr-long") / longer.specs[0].id, "addiffusion-shapes/3"]
    assert "report: runs/lr-long/report.html" in out
    told = unescape((folder / "runs/lr-long/report.html").read_text())
    assert "addiffusion tune --long lr ppo.num_epochs=2" in told


def test_variants_that_set_different_options_are_trained_for_long_as_they_were(
    say: Say, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best one's options are its own: the others keep the defaults of what only it sets."""
    monkeypatch.setattr("cluster.tune_command._promote_best", lambda *_: 0)
    more = "{with_leap: ['actions=seed', 'engine.max_nfe=33'], no_refine: ['ppo.lr=7e-4']}"
    own = [f"sweep.variants={more}", "sweep.seeds=[3,4]"]
    assert say("tune", "sweep=reward", *own, UNTRACKED)[0] == 0
    short = {spec.labels: run_config(spec.overrides) for spec in trials.seen[0].specs}
    assert say("tune", "--long", "reward", "ppo.iterations=123")[0] == 0
    specs = trials.seen[1].specs
    assert [spec.labels for spec in specs[:3]] == [
        (f"reward-long/reward-{name}",) for name in ("with_leap", "no_refine", "efficiency_heavy")
    ]
    assert [spec.seed for spec in specs] == [3, 3, 3, 4, 4, 4]
    for spec in specs:
        before = short[(spec.labels[0].replace("-long/reward-", "/"),)]
        longer = run_config(spec.overrides)
        assert longer.seed == spec.seed
        assert (longer.engine, longer.reward) == (before.engine, before.reward)
        assert longer.ppo == replace(before.ppo, iterations=123)


def test_nothing_finished_is_nothing_to_train_for_long(say: Say, trials: Trials) -> None:
    trials.limit = 0
    assert say("tune", "sweep=lr", UNTRACKED)[0] == 130
    code, _, err = say("tune", "--long", "lr")
    assert code == 2
    assert err == "error: --long=lr: no variant has finished; addiffusion tune --resume lr\n"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("schedule", "sweep=schedule has no policies"),
        ("pbt", "sweep=pbt changed its values while it trained"),
    ],
)
def test_what_left_no_variants_is_not_trained_for_long(
    say: Say, trials: Trials, file: str, said: str
) -> None:
    trials.limit = 0
    assert say("tune", f"sweep={file}", UNTRACKED)[0] == 130
    code, _, err = say("tune", "--long", file)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
