"""The engine serves without Ray: nothing in `actors` but its Ray actor imports Ray."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import actors

FOLDER = Path(actors.__file__).parent
FILES = sorted(path for path in FOLDER.rglob("*.py") if path.name != "env_runner.py")


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in it."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            packages.add((node.module or "").partition(".")[0])
    return packages


def first_party(module: str) -> Path | None:
    """The file of one of our own modules, None for what is not ours."""
    path = FOLDER.parent.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def loaded_with(path: Path, seen: set[Path]) -> set[str]:
    """Modules that importing a file loads, through all of our own; functions may import more."""
    seen.add(path)
    modules = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = {file for module in modules if (file := first_party(module)) and file not in seen}
    return modules.union(*(loaded_with(file, seen) for file in files))


@pytest.mark.parametrize(
    "path", ["actors/sampler.py", "actors/stop_callback.py", "evaluation/rollout_benchmark.py"]
)
def test_what_runs_on_a_bare_machine_needs_torch_and_diffusers_only(path: str) -> None:
    packages = {module.partition(".")[0] for module in loaded_with(FOLDER.parent / path, set())}
    assert {"torch", "diffusers"} <= packages
    assert packages & {"ray", "mlflow", "hydra", "omegaconf", "typer", "rich", "scipy", "open_clip"} == set()


def test_only_the_env_runner_imports_ray() -> None:
    assert FOLDER / "engine.py" in FILES
    assert "torch" in imported(FOLDER / "engine.py")
    assert [path.name for path in FILES if "ray" in imported(path)] == []


def test_actors_import_nothing_from_above() -> None:
    above = {"learner", "evaluation", "tune_configs", "cluster"}
    assert {path.name: imported(path) & above for path in FILES if imported(path) & above} == {}
