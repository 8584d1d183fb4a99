from __future__ import annotations

import importlib.metadata
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from cluster import checks, hub_checks
from cluster.check import Check, guarded
from tests.cluster.conftest import Say
from tune_configs.loading import compose


def named(found: list[Check], name: str) -> Check:
    (check,) = [check for check in found if check.name == name]
    return check


def examine(*overrides: str) -> list[Check]:
    return list(checks.checks(compose(overrides)))


def test_every_check_that_fails_has_a_hint(folder: Path) -> None:
    found = examine("backbone.name=no/such", "backbone.scorers=nowhere", "prompts.source=missing.txt")
    for name in ("backbone", "reward models", "prompts and actions"):
        assert not named(found, name).passed
    assert all(check.hint for check in found if not check.passed)
    assert list(folder.iterdir()) == []


def test_packages_are_held_against_what_the_project_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda name: ["torch>=99", "no-such-package", "numpy", "x; extra == 'dev'"],
    )
    found = list(checks.packages())
    assert [(check.name, check.passed) for check in found] == [
        ("torch", False),
        ("no-such-package", False),
        ("numpy", True),
    ]
    assert "torch>=99" in found[0].hint


@pytest.mark.parametrize(("free", "passed"), [(10 * checks.GIB, True), (checks.GIB, False)])
def test_a_disk_that_is_nearly_full_is_told(
    monkeypatch: pytest.MonkeyPatch, folder: Path, free: int, passed: bool
) -> None:
    usage = SimpleNamespace(total=100 * checks.GIB, used=50 * checks.GIB, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert checks.disk("disk", folder / "not" / "there").passed is passed


def test_a_registry_that_is_no_database_is_told_and_left_alone(folder: Path) -> None:
    (folder / "runs").mkdir()
    database = folder / "runs" / "mlflow.db"
    database.write_bytes(b"not a database" * 100)
    check = named(examine(), "MLflow registry")
    assert not check.passed
    assert database.read_bytes() == b"not a database" * 100


def test_a_registry_that_is_not_there_yet_is_not_made(folder: Path) -> None:
    assert named(examine(), "MLflow registry").passed
    assert not (folder / "runs").exists()


def test_a_broken_installation_is_a_failed_row() -> None:
    def examine() -> Check:
        raise ImportError("libcudart.so: cannot open shared object file")

    check = guarded("torch", examine)
    assert (check.passed, check.found) == (False, "ImportError")
    assert "libcudart.so" in check.hint


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_the_table_has_the_hint_and_the_exit_code_says_whether_all_is_well(
    say: Say, monkeypatch: pytest.MonkeyPatch, passed: bool, code: int
) -> None:
    rows = [Check("disk", passed, "1 GiB free", "free some")]
    monkeypatch.setattr("cluster.doctor_command.checks", lambda settings: rows)
    answered, out, _ = say("doctor")
    assert answered == code
    assert ("free some" in out) is not passed


def test_libraries_say_nothing_beside_the_table(
    say: Say, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.doctor_command.checks", lambda settings: [])
    diffusers = logging.getLogger("diffusers")  # which does not always hand on what it is told
    monkeypatch.setattr(diffusers, "handlers", [caplog.handler])
    assert say("doctor")[0] == 0
    assert [record.getMessage() for record in caplog.records if record.name.startswith("diffusers")] == []


def test_brackets_in_what_was_found_are_shown_as_they_are(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Check("disk", False, "no [red] at [/data]", "take [/]")]
    monkeypatch.setattr("cluster.doctor_command.checks", lambda settings: rows)
    _, out, _ = say("doctor")
    assert "no [red] at [/data]" in out
    assert "take [/]" in out


def test_no_word_of_a_hint_is_cut_in_a_log(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "ray start --resources='{\"addiffusion_denoiser\": 1}'"
    rows = [Check("room on the cluster", False, "4 x env runner " * 5, f"none offers it; start: {command}")]
    monkeypatch.setattr("cluster.doctor_command.checks", lambda settings: rows)
    _, out, _ = say("doctor", "resources=cluster")
    assert all(word in out for word in command.split())
    assert "…" not in out


def test_user_and_password_of_the_tracking_server_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(tracking_uri: str) -> None:
        raise OSError(f"no answer from {tracking_uri}")

    monkeypatch.setattr("mlflow.MlflowClient", unreachable)
    check = named(examine("registry.tracking_uri=http://me:hidden-word@127.0.0.1:9"), "MLflow registry")
    assert "http://***@127.0.0.1:9" in check.hint
    assert "hidden-word" not in check.hint + check.found


def test_reward_models_that_are_not_in_the_cache_are_named_with_their_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_checks, "in_cache", lambda repository, file: "THUDM" in repository)
    check = checks.reward_files(compose(["backbone=sd15"]).run.backbone.scorers)
    assert not check.passed
    assert "hf download facebook/dinov2-base" in check.hint
    assert "hf download timm/vit_large_patch14_clip_224.openai" in check.hint
    assert "THUDM" not in check.hint
    monkeypatch.setattr(hub_checks, "in_cache", lambda repository, file: True)
    assert checks.reward_files(compose(["backbone=sd15"]).run.backbone.scorers).passed


def test_weights_that_the_hub_would_give_are_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Hub:
        """Knows one public and one gated repository."""

        def model_info(self, repository: str, *, timeout: float) -> SimpleNamespace:
            asked.append(repository)
            if repository == "away/away":
                raise ConnectionError("no route to host")
            if repository.startswith("nobody/"):
                raise RepositoryNotFoundError("404", response=Mock())
            return SimpleNamespace(gated="auto" if repository == "gated/flux" else False)

        def auth_check(self, repository: str) -> None:
            raise GatedRepoError("403", response=Mock())

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(hub_checks, "in_cache", lambda repository, file: False)

    def check(*overrides: str) -> Check:
        return checks.backbone_files(compose(["backbone=sd15", *overrides]).run.backbone)

    public = check()
    assert public.passed
    assert "the hub will send: stable-diffusion-v1-5/stable-diffusion-v1-5" in public.found
    gated = check("backbone.name=gated/flux")
    assert (gated.passed, gated.hint) == (
        False,
        "gated/flux: accept its terms on the hub, then: hf auth login",
    )
    assert "no such repository" in check("backbone.name=nobody/nothing").hint
    assert "nobody/taesd: " in check("backbone.tiny_decoder=nobody/taesd").hint
    assert "nobody/lora: " in check("backbone.lora=nobody/lora").hint
    asked.clear()
    silent = check("backbone.name=away/away", "backbone.lora=zero/zero")
    assert asked == ["away/away"], "who does not answer is not asked again"
    assert "hf download away/away; hf download zero/zero" in silent.hint


def test_a_reward_checkpoint_that_is_no_file_is_a_failed_row(folder: Path) -> None:
    check = named(examine("backbone=sd15", "backbone.scorers.aesthetic.head=head.pth"), "reward models")
    assert not check.passed
    assert "backbone.scorers.aesthetic.head=head.pth: no such file" in check.hint
