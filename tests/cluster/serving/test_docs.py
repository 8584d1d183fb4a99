"""Every command of docs/serving.md is run: `addiffusion` without Ray's part, curl against a real painter."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import bench_command, cli, serve_command
from cluster.serving.limits import AccessRules
from cluster.serving.models import ModelSource
from cluster.serving.painter import Painter, PainterSettings
from tests.cluster.serving.painters import events_of, png_of
from tests.cluster.serving.site import Site
from tests.cluster.serving.world import Alone, saved_run

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
COMMANDS = [shlex.split(line, comments=True) for block in BLOCKS for line in block.splitlines()]


def test_every_line_is_a_command_that_is_run_here() -> None:
    assert {command[0] for command in COMMANDS} == {"addiffusion", "curl"}
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "addiffusion"], ids=" ".join)
def test_the_command_line_takes_it(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def serve_model(model: str, options: serve_command.ServeOptions, **rest: object) -> int:
        options.check()
        options.token()
        seen.append((model, options))
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADDIFFUSION_TOKEN", "a-token-of-some-length")
    monkeypatch.setattr(serve_command, "serve_model", serve_model)
    monkeypatch.setattr(bench_command, "bench_serving", lambda model, **rest: seen.append(rest))
    assert cli.run(command[1:]) == 0
    assert len(seen) == 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Alone]]:
    run_dir = saved_run(tmp_path_factory.mktemp("docs") / "runs", "first")
    painter = Painter(ModelSource("first", run_dir.parent), PainterSettings(slots=2))
    site = Site(painter, AccessRules())
    yield site, Alone(run_dir / "policy")
    site.close()
    painter.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl is installed")
def test_curl_gets_what_the_page_says(site: tuple[Site, Alone]) -> None:
    served, alone = site
    for command in (command for command in COMMANDS if command[0] == "curl"):
        here = [part.replace("http://127.0.0.1:8000/", served.url) for part in command]
        answered = subprocess.run([*here, "--silent", "--fail"], capture_output=True, check=True, timeout=120)
        text = answered.stdout.decode()
        if command[-1].endswith("/v1/models"):
            assert json.loads(text)["data"][0]["id"] == "first"
            continue
        asked = json.loads(command[-1])
        image = events_of(text)[-1][1] if asked.get("stream") else json.loads(text)["data"][0]
        assert png_of(image) == alone.png(asked["prompt"], image["seed"])
