"""What the tests of the command line share: a folder of one's own, and a run that looks trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from actors.policy import PolicyNetwork, save_policy
from cluster import cli
from tune_configs.loading import compose

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def say(folder: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs `addiffusion ...` in `folder`; gives exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def trained_run(folder: Path) -> Path:
    """runs/earlier, with a configuration and a small policy."""
    run_dir = folder / "runs" / "earlier"
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(compose(["name=earlier"]).to_yaml(), encoding="utf-8")
    save_policy(run_dir / "policy", PolicyNetwork(4, 3, (8,)), {"run": "earlier"})
    return run_dir
