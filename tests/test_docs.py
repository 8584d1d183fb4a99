"""Every command in README.md and docs/ is one that exists: its options parse, its overrides compose.

What README and the pages on own parts have in Python is run.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.parsing import parse
from tune_configs.loading import STUDIES, compose, compose_offline
from tune_configs.sweep_files import PREFIX, read_sweep

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
#: Commands whose overrides are those of a training.
COMPOSED = {
    ("train",),
    ("doctor",),
    ("evaluate",),
    ("serve",),
    ("config", "show"),
    ("baselines", "run"),
    ("baselines", "fit-adadiff"),
    ("bench", "rollout"),
    ("rewards", "start"),
    ("rewards", "calibrate"),
}
_LEFT_OUT = ("...", "OPTION=VALUE", "GROUP=FILE", "@FILE", "[OVERRIDES]")


def blocks(page: Path) -> Iterator[str]:
    """Fenced blocks that are not of another language."""
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        if language in ("", "sh", "bash"):
            yield text.replace("\\\n", " ")


def command_lines(page: Path, program: str) -> list[list[str]]:
    """The words behind `program`, of each line in a block that runs it; comments are gone."""
    found = []
    for block in blocks(page):
        for line in block.splitlines():
            if match := re.match(rf"\s*(?:\w+=\S* +)*{program} (.*)", line):  # variables may stand before it
                words = shlex.split(match[1], comments=True)
                found.append([word.strip("[]") if word.startswith("[-") else word for word in words])
    return found


def all_lines(program: str) -> list[object]:
    return [
        pytest.param(words, id=f"{page.stem}: {' '.join(words)}")
        for page in PAGES
        for words in command_lines(page, program)
    ]


def check(words: list[str]) -> None:
    """Raises what the command would refuse."""
    parsed = parse(words)
    overrides = [text for text in parsed.overrides if text not in _LEFT_OUT and not text.startswith("@")]
    if parsed.path == ("submit",):
        check(list(parsed.values["command"]))
    elif parsed.path == ("offline",):
        compose_offline(overrides)
    elif parsed.path == ("tune",) and overrides:
        ((group, file),) = [
            (text.partition("=")[0], text.partition("=")[2])
            for text in overrides
            if text.partition("=")[0] in STUDIES
        ]
        read_sweep(group, file, [text for text in overrides if text.startswith(PREFIX)])
        compose([text for text in overrides if not text.startswith((PREFIX, f"{group}="))])
    elif parsed.path in COMPOSED:
        compose(overrides)


@pytest.mark.parametrize("words", all_lines("addiffusion"))
def test_a_command_in_a_block_would_run(words: list[str]) -> None:
    check([word for word in words if word != "..."])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_within_sentences_exist(page: Path) -> None:
    """Within a sentence values are often left out; the command and its options have to be there."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`addiffusion ([^`]+)`", text):
        words = shlex.split(" ".join(code.split()))
        help_of = [word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)][:2]
        options = [word.partition("=")[0] for word in words if word.startswith("--") and word != "--"]
        known = options_of(help_of)
        assert set(options) <= known, f"{page.name}: addiffusion {code}"


def options_of(names: list[str]) -> set[str]:
    """The options of a command, from its first one or two names. Fails if there is no such command."""
    import typer

    from cluster.cli import app

    command = typer.main.get_command(app)
    assert names
    command = command.commands[names[0]]  # type: ignore[attr-defined]
    if hasattr(command, "commands") and len(names) > 1:
        command = command.commands[names[1]]
    return {option for parameter in command.params for option in parameter.opts} | {"--help"}


@pytest.mark.parametrize("words", all_lines("ray"))
def test_rays_commands_exist_with_their_options(words: list[str]) -> None:
    from ray.scripts.scripts import cli

    command = cli.commands[words[0]]
    command.make_context(words[0], [word for word in words[1:] if word != "..."], resilient_parsing=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_commands_name_are_there(page: Path) -> None:
    for block in blocks(page):
        for name in re.findall(r"(?<![\w/.-])((?:cluster|docs|tests|tune_configs)/[\w./-]+\.\w+)", block):
            assert (PROJECT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", ["own_backbone", "own_scorer"])
def test_the_python_of_a_page_runs_from_top_to_bottom(
    name: str, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (PROJECT / "docs" / f"{name}.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert code
    monkeypatch.chdir(PROJECT)
    exec("\n".join(code), {"__name__": f"docs.{name}"})


@pytest.mark.parametrize("words", all_lines("python -m"))
def test_options_of_modules_exist(words: list[str]) -> None:
    importlib.import_module(words[0])._parser().parse_args(words[1:])


def test_the_python_of_the_readme_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the embedded world's own pipeline; policies that chance has made stand in for its two runs."""
    from actors.backbones.config import BackboneConfig
    from actors.backbones.loading import load_backbone
    from tests.actors.test_sampler import LOOKING, STOPPING, save_wilful_policy

    backbone = load_backbone(BackboneConfig())
    for run, engine in (("run", LOOKING), ("early_stop", STOPPING)):
        save_wilful_policy(tmp_path / "runs" / run / "policy", backbone, engine, options=BackboneConfig())
    (tmp_path / "shapes").symlink_to(PROJECT / "shapes")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"^```python\n(.*?)^```", (PROJECT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(code) == 2
    names: dict[str, Any] = {"__name__": "readme"}
    exec("\n".join(code), names)
    assert (tmp_path / "picture.png").stat().st_size > 0
    assert names["stop"].episodes[0].nfe >= STOPPING.warmup_steps


def test_the_python_line_of_the_prompts_page_runs(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    prompts = [f"{number} dogs" for number in range(300)]
    parquet.write_table(pa.table({"prompt": prompts}), tmp_path / "prompts.parquet")
    (text,) = [block for block in blocks(PROJECT / "docs" / "prompts.md") if block.startswith("python -c")]
    _, *arguments = shlex.split(text)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("256 ")
