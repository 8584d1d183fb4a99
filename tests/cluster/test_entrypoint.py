"""What a command becomes as a job, and which files go with it."""

from __future__ import annotations

import os
import shlex
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from actors.errors import UserError
from cluster.entrypoint import Entrypoint, entrypoint
from cluster.package import MIB, PACKAGES, PROJECT, collect, pack
from cluster.parsing import parse
from cluster.submit_command import environment
from tests.cluster.conftest import Say
from tune_configs.loading import compose

STORAGE = PurePosixPath("/mnt/shared")


def made(*arguments: str, **options: Any) -> Entrypoint:
    return entrypoint(arguments, job="job-1", **{"folder": Path(), **options})


def words(line: str) -> list[str]:
    """What is behind `python -m cluster.cli`."""
    assert shlex.split(line)[:3] == ["python", "-m", "cluster.cli"]
    return shlex.split(line)[3:]


def test_a_training_keeps_its_options_and_gets_a_place_that_stays_the_cluster_and_a_name() -> None:
    job = made("train", "backbone=sdxl", "resources=cluster", "seed=7", storage=STORAGE)
    parsed = parse(words(job.line))
    run = compose(parsed.overrides).run
    assert parsed.path == ("train",)
    assert (run.backbone.name, run.seed) == (compose(["backbone=sdxl"]).run.backbone.name, 7)
    assert (run.runs_dir, run.name, run.resources.address) == ("/mnt/shared/runs", "job-1", "auto")
    assert job.results == "/mnt/shared/runs/job-1"
    assert not job.world  # SDXL and its reward models come from the hub


@pytest.mark.parametrize(("given", "address"), [([], "auto"), (["--address", "other:6379"], "other:6379")])
def test_an_endpoint_is_served_on_the_cluster_and_not_on_a_ray_within_it(
    given: list[str], address: str
) -> None:
    job = made("serve", "mine", *given, storage=STORAGE)
    assert parse(words(job.line)).values["address"] == address
    assert "--address" not in words(made("rewards", "status").line)  # which looks for a cluster by itself


def test_what_the_user_says_stays() -> None:
    job = made("train", "runs_dir=/data/runs", "name=mine", "resources.address=other:6379", storage=STORAGE)
    assert words(job.line) == ["train", "runs_dir=/data/runs", "name=mine", "resources.address=other:6379"]
    assert job.results == "/data/runs/mine"
    assert job.world


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (["train"], {}, "runs_dir=runs: results there vanish with the job; give --storage"),
        (["tune", "sweep=lr", "runs_dir=here"], {}, "runs_dir=here: results there vanish"),
        (["offline", "trajectories=/data/run"], {}, "runs_dir=runs: results there vanish"),
        (["train", "--resume", "mine"], {}, "mine: is not there in a job"),
        (["evaluate", "mine"], {}, "--runs-dir=runs: is not there in a job"),
        (["judge", "/data/images", "--out", "verdicts"], {}, "--out=verdicts: is not there in a job"),
        (
            ["registry", "export", "m/1", "out", "--tracking-uri", "http://10.0.0.5:5000"],
            {},
            "FOLDER=out: is not there in a job, or vanishes with it",
        ),
        (["train"], {"storage": PurePosixPath("shared")}, "--storage=shared: give an absolute path"),
        (
            ["train"],
            {"storage": PurePosixPath("/a b")},
            "--storage=/a b: give an absolute path without spaces",
        ),
        (["train", "ppo.lrr=1"], {"storage": STORAGE}, "unknown option 'ppo.lrr'"),
        (["jobs", "list"], {}, "jobs: a job submits no jobs"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_sent(
    arguments: list[str], options: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError) as raised:
        made(*arguments, **options)
    assert str(raised.value).startswith(said)


def test_with_a_tracking_server_a_training_may_go_without_storage_and_is_warned() -> None:
    job = made("train", variables=["MLFLOW_TRACKING_URI"])
    assert job.warning is not None
    assert "checkpoints and report vanish" in job.warning
    assert made("train", storage=STORAGE).warning is None


def test_the_tracking_server_is_the_jobs_and_its_address_is_not_in_the_shell_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = made("train", storage=STORAGE, variables=["MLFLOW_TRACKING_URI"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@tracking:5000")
    assert "secret" not in job.line
    run = compose(parse(words(job.line)).overrides).run
    assert run.registry.tracking_uri == "http://user:secret@tracking:5000"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["report", "mine"], ["report", "mine", "--runs-dir", "/mnt/shared/runs"]),
        (["report", "mine", "--runs-dir=old"], ["report", "mine", "--runs-dir=/mnt/shared/old"]),
        (["bench", "rollout", "--json", "x.json"], ["bench", "rollout", "--json", "/mnt/shared/x.json"]),
        (
            ["baselines", "fit-adadiff", "a.safetensors"],
            ["baselines", "fit-adadiff", "/mnt/shared/a.safetensors"],
        ),
        (["doctor", "backbone=sdxl"], ["doctor", "backbone=sdxl"]),
        (
            ["registry", "export", "m@champion", "out", "--tracking-uri", "http://10.0.0.5:5000"],
            ["registry", "export", "m@champion", "/mnt/shared/out", "--tracking-uri", "http://10.0.0.5:5000"],
        ),
        (
            ["generate", "--out", "/data/a.png", "--runs-dir", "/data", "--", "--a dog"],
            ["generate", "--out", "/data/a.png", "--runs-dir", "/data", "--", "--a dog"],
        ),
    ],
)
def test_places_become_those_of_the_storage(arguments: list[str], expected: list[str]) -> None:
    job = made(*arguments, storage=STORAGE)
    assert words(job.line) == expected
    assert job.again == job.line


@pytest.mark.parametrize("command", [["train"], ["tune", "sweep=lr"]])
def test_a_second_try_resumes_what_has_begun_and_else_begins(command: list[str]) -> None:
    begun = {"train": "config.yaml", "tune": "sweep.yaml"}[command[0]]
    job = made(*command, "name=mine", storage=STORAGE)
    place = "/mnt/shared/runs/mine"
    resume = shlex.join(["python", "-m", "cluster.cli", command[0], "--resume", place])
    assert job.again == f"if test -f {shlex.quote(f'{place}/{begun}')}; then {resume}; else {job.line}; fi"


def test_a_name_in_quotes_is_the_name_that_the_run_gets() -> None:
    job = made("train", "name='my run'", storage=STORAGE)
    assert job.results == str(compose(words(job.line)[1:]).run.run_dir) == "/mnt/shared/runs/my run"
    assert shlex.quote("/mnt/shared/runs/my run") in job.again


def names(folder: Path, **options: Any) -> set[str]:
    return set(collect(folder, **options))


def test_hidden_files_runs_and_weights_stay_here_unless_the_command_names_them(tmp_path: Path) -> None:
    for name in (
        ".env",
        ".git/config",
        "runs/a/policy/policy.safetensors",
        "runs/a/calibration.yaml",
        "runs/b/calibration.yaml",
        "models/big.safetensors",
        "data/prompts.txt",
        "data/__pycache__/x.pyc",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("content")

    def mine(**options: Any) -> set[str]:
        return {name for name in names(tmp_path, **options) if name.partition("/")[0] not in PACKAGES}

    assert mine() == {"data/prompts.txt"}
    assert mine(named=["runs/a/calibration.yaml"]) == {"data/prompts.txt", "runs/a/calibration.yaml"}
    assert mine(named=["models"]) == {"data/prompts.txt", "models/big.safetensors"}
    assert mine(excludes=["data/*"]) == set()
    assert "cluster/cli.py" in names(tmp_path)


def test_a_command_names_files_by_option_and_by_itself(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a dog\n")
    (tmp_path / "mine.yaml").write_text("seed: 3\n")
    (tmp_path / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        job = made("train", "prompts.source=prompts.txt", "@mine.yaml", folder=tmp_path, storage=STORAGE)
        assert set(job.named) == {"prompts.txt", "mine.yaml"}
        patch.chdir(tmp_path / "work")
        with pytest.raises(UserError, match=r"^prompts.source=../prompts.txt: is outside of"):
            made("train", "prompts.source=../prompts.txt", folder=tmp_path / "work", storage=STORAGE)


def test_a_prompt_may_be_longer_than_any_file_s_name() -> None:
    prompt = "a red circle and " * 30
    job = made("generate", prompt, "--out", "/data/a.png", "--runs-dir", "/data")
    assert words(job.line)[1] == prompt
    assert job.named == ()


@pytest.mark.parametrize("name", ["build/mine", ".hidden/prompts.txt", "linked", "kept/left-out.txt"])
def test_what_the_command_names_travels_or_is_refused(tmp_path: Path, name: str) -> None:
    for file in ("build/mine/a.txt", ".hidden/prompts.txt", "kept/left-out.txt", "kept/other.txt", "empty/x"):
        (tmp_path / "mine" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / file).write_text("content")
    (tmp_path / "mine" / "empty" / "x").unlink()
    (tmp_path / "mine" / "linked").symlink_to(tmp_path / "mine" / "kept")
    with pytest.raises(UserError, match="does not travel") as raised:
        collect(tmp_path / "mine", named=[name], excludes=["left-out.txt"])
    assert str(raised.value).startswith(f"{name}: ")
    assert "kept/other.txt" in collect(tmp_path / "mine", named=["kept", "kept/other.txt", "empty"])


def test_the_worlds_models_travel_only_where_they_are_needed() -> None:
    without, whole = names(PROJECT, world=False), names(PROJECT)
    weights = {name for name in whole - without if name.startswith("shapes/models/")}
    assert whole - without == weights
    assert any(name.endswith("diffusion_pytorch_model.safetensors") for name in weights)
    assert {
        path.relative_to(PROJECT).as_posix() for path in (PROJECT / "tune_configs").rglob("*.yaml")
    } <= without


def test_a_folder_that_would_hide_the_project_is_refused(tmp_path: Path) -> None:
    (tmp_path / "learner").mkdir()
    with pytest.raises(UserError, match="'learner' there would hide the project's own"):
        collect(tmp_path)


def test_equal_files_give_an_equal_archive_that_unpacks_to_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "run.sh").chmod(0o755)
    files = {"a.txt": tmp_path / "a.txt", "bin/run.sh": tmp_path / "run.sh"}
    first = pack(files, tmp_path / "first.zip")
    (tmp_path / "a.txt").touch()
    assert pack(files, tmp_path / "second.zip").path.read_bytes() == first.path.read_bytes()
    with zipfile.ZipFile(first.path) as archive:
        assert archive.read("a.txt") == b"a"
        assert archive.getinfo("bin/run.sh").external_attr >> 16 & 0o111
    assert first.size == first.path.stat().st_size


def test_a_file_that_cannot_be_sent_is_one_line(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("a")
    with pytest.raises(UserError, match=r"^'\\udcff.txt': cannot travel \(its name is not UTF-8\)"):
        pack(collect(tmp_path, world=False), tmp_path / "job.zip")
    with pytest.raises(UserError, match=r"^'gone.txt': cannot travel \(No such file"):
        pack({"gone.txt": tmp_path / "gone.txt"}, tmp_path / "job.zip")


def test_a_package_that_is_too_large_names_the_largest_files_and_what_to_do(tmp_path: Path) -> None:
    sizes = {"large.dat": 3 * MIB, "larger.dat": 4 * MIB, "small.txt": 10}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(os.urandom(size))
    files = {name: tmp_path / name for name in sizes}
    with pytest.raises(UserError) as raised:
        pack(files, tmp_path / "job.zip", limit=5 * MIB)
    said = str(raised.value)
    assert said.startswith(
        "the job's files are more than 5 MiB (unpacked 7 MiB); the largest: larger.dat (4.0"
    )
    assert "large.dat (3.0 MiB)" in said
    assert "--exclude" in said
    assert "\n" not in said


def test_variables_come_with_a_value_or_with_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "value")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert environment(["MINE", "A=b=c", "EMPTY="]) == {"MINE": "value", "A": "b=c", "EMPTY": ""}
    with pytest.raises(UserError, match=r"^--env NOWHERE: is not set here"):
        environment(["NOWHERE"])
    with pytest.raises(UserError) as raised:
        environment(["hf_abcdef-secret"])
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resource", "gpu"], "--resource gpu: give NAME=N"),
        (["--cpus", "-1"], "--cpus=-1: give a number >= 0"),
        (["--retries", "1", "--no-wait"], "--retries=1: give it without --no-wait"),
        (["--working-dir", "nowhere"], "--working-dir=nowhere: no such folder"),
        (["--address", "http://127.0.0.1:1"], "--address=http://127.0.0.1:1: cannot connect"),
    ],
)
def test_mistakes_are_one_line(say: Say, options: list[str], said: str) -> None:
    code, out, err = say("submit", *options, "--", "doctor")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_installing_versions_leaves_ray_and_tools_to_the_cluster(tmp_path: Path) -> None:
    from cluster.submit_command import _requirements

    pins = {line.partition("==")[0]: line for line in _requirements()}
    assert {"torch", "mlflow", "diffusers"} <= set(pins)
    assert not {"ray", "pytest", "ruff"} & set(pins)
    assert all("==" in line for line in pins.values())
