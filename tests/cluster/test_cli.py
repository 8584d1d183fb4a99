from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from actors.errors import UserError
from cluster import cli
from tests.cluster.conftest import Say
from tune_configs.loading import compose


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_one_line(answer: tuple[int, str, str], *words: str) -> None:
    code, out, err = answer
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--foo"], ["--foo"]),
        (["trian"], ["trian", "train"]),
        (["train", "--fast"], ["--fast"]),
        (["train", "ppo.lrr=1"], ["ppo.lrr", "ppo.lr"]),
        (["train", "solver=ddmi"], ["ddmi", "ddim"]),
        (["train", "ppo.lr=fast"], ["ppo.lr", "fast", "a number"]),
        (["train", "engine.num_steps=0"], ["engine.num_steps", "0"]),
        (["train", "engine.actions=[fly,stop]"], ["engine.actions", "fly"]),
        (["train", "name=a/b"], ["name", "a/b"]),
        (["train", "--resume", "nothing"], ["nothing"]),
        (["evaluate", "nothing"], ["nothing", "name@alias"]),
        (["report", "nothing"], ["nothing"]),
        (["generate"], ["prompt"]),
        (["generate", " "], ["PROMPT", "1 to 300"]),
        (["generate", "dog " * 5000], ["PROMPT", "5000", "300"]),
        (["generate", "a dog", "--seed", "x"], ["--seed", "'x'", "whole number"]),
        (["generate", "a dog", "--seed", "-1"], ["--seed", "-1"]),
        (["generate", "a dog", "--max-nfe", "0"], ["--max-nfe", "0"]),
        (["generate", "a dog", "--out", "dog.docx"], ["--out", "dog.docx", ".png"]),
        (
            ["generate", "a dog", "--out", "dog.fits"],
            ["--out", "dog.fits", ".png"],
        ),  # which Pillow only reads
        (["generate", "a dog", "--out", "no/such/dog.png"], ["--out", "no/such/dog.png"]),
        (["bench", "update", "--decisions", "1"], ["--decisions=1", "from 64"]),
        (["baselines", "fit-adadiff", "a.safetensors", "--price", "nan"], ["--price=nan"]),
        (["generate", "a dog"], ["no trained policy"]),
        (["serve", "x", "--device", "gpu"], ["--device", "gpu", "cuda"]),
        (["registry", "promote", "x", "--device", "gpu"], ["--device", "gpu", "cuda"]),
        (["config"], ["command"]),
        (["config", "show", "seed=-1"], ["seed", "-1"]),
    ],
)
def test_a_users_mistake_is_one_line_and_leaves_nothing_behind(
    say: Say, folder: Path, arguments: list[str], words: list[str]
) -> None:
    assert_one_line(say(*arguments), *words)
    assert files_of(folder) == []


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["baselines", "run", "dpmpp-3", "--out", "taken.txt/rows.parquet"], "--out"),
        (["baselines", "run", "dpmpp-3", "--out", "runs"], "--out"),
        (["baselines", "fit-adadiff", "taken.txt/choice.safetensors"], "FILE"),
        (["front", "earlier", "--out", "taken.txt"], "--out"),
        (["metrics", "pictures", "--out", "taken.txt"], "--out"),
        (["layout", "geneval", "pictures", "--prompts", "taken.txt", "--out", "taken.txt"], "--out"),
        (["judge", "pictures", "--judge", "gpt-4o", "--dry-run", "--out", "taken.txt/deep"], "--out"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(
    say: Say, folder: Path, trained_run: Path, arguments: list[str], option: str
) -> None:
    (folder / "taken.txt").write_text("mine")
    before = files_of(folder)
    place = arguments[-1]
    assert_one_line(say(*arguments), f"{option}={place}: give a ", "not there yet")
    assert files_of(folder) == before
    assert (folder / "taken.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.txt", None, ["missing.txt"]),
        ("empty.txt", b"", ["empty.txt"]),
        ("blank.txt", b"\n  \n", ["blank.txt"]),
        ("binary.txt", b"\x89PNG\r\n\x1a\n\x00\xff", ["binary.txt"]),
        ("long.txt", b"a dog\n" + b"word " * 5000, ["long.txt", "line 2", "5000"]),
        ("prompts.docx", b"a dog", ["prompts.docx", ".txt"]),
    ],
)
@pytest.mark.parametrize("option", ["prompts.source", "evaluation.prompts"])
def test_prompts_that_cannot_be_used_are_told_before_a_run_begins(
    say: Say, folder: Path, name: str, content: bytes | None, words: list[str], option: str
) -> None:
    if content is not None:
        (folder / name).write_bytes(content)
    before = files_of(folder)
    assert_one_line(say("train", f"{option}={name}"), f"{option} is ", *words)
    assert files_of(folder) == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_what_may_not_be_read_or_written_is_one_line_that_names_it(
    say: Say, trained_run: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def write_report(run_dir: Path) -> NoReturn:
        raise OSError(number, os.strerror(number), str(run_dir / "report.html"))

    monkeypatch.setattr("evaluation.report.write_report", write_report)
    assert_one_line(say("report", "earlier"), "earlier/report.html: ", os.strerror(number), "permissions")


def test_dry_run_prints_the_whole_configuration_and_starts_nothing(say: Say, folder: Path) -> None:
    code, out, err = say("train", "ppo.lr=1e-4", "name=mine", "--dry-run")
    assert (code, err) == (0, "")
    assert yaml.safe_load(out) == yaml.safe_load(compose(["ppo.lr=1e-4", "name=mine"]).to_yaml())
    assert files_of(folder) == []


def test_config_show_prints_what_train_would_use(say: Say) -> None:
    assert say("config", "show", "seed=3")[1] == say("train", "seed=3", "--dry-run")[1]


def test_resume_uses_the_runs_own_configuration(say: Say, trained_run: Path) -> None:
    (trained_run / "config.yaml").write_text(compose(["name=earlier", "ppo.lr=2e-4"]).to_yaml())
    _, out, _ = say("train", "--resume", "earlier", "ppo.iterations=99", "--dry-run")
    shown = yaml.safe_load(out)
    assert (shown["ppo"]["lr"], shown["ppo"]["iterations"]) == (2e-4, 99)
    assert_one_line(say("train", "--resume", "earlier", "solver=ddim"), "solver=ddim")


def test_a_run_without_a_name_gets_a_free_one_and_a_name_is_kept(say: Say, folder: Path) -> None:
    for name in ("run", "run-2"):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "config.yaml").write_text("")
    assert yaml.safe_load(say("train", "--dry-run")[1])["name"] == "run-3"
    assert yaml.safe_load(say("train", "--dry-run", "name=run")[1])["name"] == "run"


def test_without_a_command_it_shows_the_commands(say: Say) -> None:
    code, out, err = say()
    assert (code, err) == (0, "")
    for command in ("train", "evaluate", "generate", "report", "doctor"):
        assert command in out


def test_a_damaged_policy_is_one_line_that_names_the_file(say: Say, trained_run: Path) -> None:
    weights = trained_run / "policy" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    before = files_of(trained_run)
    assert_one_line(say("generate", "a dog", "--model", "earlier"), "policy.safetensors", "damaged")
    assert_one_line(say("evaluate", "earlier"), "policy.safetensors", "damaged")
    assert files_of(trained_run) == before


def _raising(error: BaseException) -> Any:
    def command(*_: object, **__: object) -> NoReturn:
        raise error

    return command


def _wrapped(inner: Exception) -> Exception:
    outer = RuntimeError("a worker failed")
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "runs/run/policy.safetensors"),
        _wrapped(OSError(errno.ENOSPC, "No space left on device", "runs/run/policy.safetensors")),
        RuntimeError(
            "[enforce fail at inline_container.cc] . PytorchStreamWriter failed: No space left on device"
        ),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ],
)
def test_a_full_disk_is_one_line(say: Say, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr("cluster.train_command.train_and_report", _raising(error))
    assert_one_line(say("train"), "no space left on device", "runs_dir=FOLDER")


def test_a_users_mistake_found_by_a_worker_is_one_line_too(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a class made of RayTaskError and ours; its text is the worker's traceback."""

    class RemoteError(UserError):
        cause = UserError("backbone='x': give shapes")

    error = RemoteError("ray::task() Traceback (most recent call last): ...")
    monkeypatch.setattr("cluster.train_command.train_and_report", _raising(error))
    assert say("train") == (2, "", "error: backbone='x': give shapes\n")


def test_our_own_mistakes_keep_their_traceback(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.train_command.train_and_report", _raising(AssertionError("broken")))
    with pytest.raises(AssertionError, match="broken"):
        say("train")


def test_the_installed_command_exits_with_2_and_one_line(folder: Path) -> None:
    program = [sys.executable, "-c", "from cluster.cli import main; main()", "train", "ppo.lrr=1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown option 'ppo.lrr'; did you mean 'ppo.lr'?\n"


def test_help_needs_no_heavy_package() -> None:
    code = "import sys; from cluster.cli import run; run(['train', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "mlflow", "diffusers", "hydra", "numpy"} & set(done.stdout.split())


def test_main_exits_with_the_code(folder: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--fast"])
    assert caught.value.code == 2
