"""The engine serves without Ray: nothing in `actors` but its Ray actor imports Ray."""

from __future__ import annotations

import ast
from pathlib import Path

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


def test_only_the_env_runner_imports_ray() -> None:
    assert FOLDER / "engine.py" in FILES
    assert "torch" in imported(FOLDER / "engine.py")
    assert [path.name for path in FILES if "ray" in imported(path)] == []


def test_actors_import_nothing_from_above() -> None:
    above = {"learner", "evaluation", "tune_configs", "cluster"}
    assert {path.name: imported(path) & above for path in FILES if imported(path) & above} == {}
