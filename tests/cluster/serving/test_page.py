"""The page in a real browser: what a visitor does and sees, on a desk and on a phone."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cluster.serving.limits import AccessRules, digest_of
from cluster.serving.models import ModelSource
from cluster.serving.painter import Painter, PainterSettings
from tests.browser import CHROMIUM, Browser, browser
from tests.cluster.serving.site import Site
from tests.cluster.serving.world import Alone, saved_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

TOKEN = "a-token-of-some-length"
INJECTION = "<img src=x onerror=window.owned=1>\"'><script>window.owned=1</script>"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("page") / "runs", "first")


@pytest.fixture(scope="module")
def painter(run_dir: Path) -> Iterator[Painter]:
    painter = Painter(ModelSource("first", run_dir.parent), PainterSettings(slots=2))
    yield painter
    painter.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture
def site(painter: Painter) -> Iterator[Site]:
    site = Site(painter, AccessRules())
    yield site
    site.close()


def paint(chromium: Browser, prompt: str, **options: object) -> None:
    """What a visitor types and clicks."""
    values = {"prompt": prompt, **{name.replace("_", "-"): value for name, value in options.items()}}
    for name, value in values.items():
        chromium.run(f"document.getElementById({name!r}).value = {json.dumps(str(value))}")
    chromium.run("document.getElementById('paint').click()")


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False), (390, True)])
def test_a_visitor_sees_the_picture_form(
    width: int, dark: bool, chromium: Browser, site: Site, run_dir: Path, tmp_path: Path
) -> None:
    chromium.complaints.clear()
    chromium.open(site.url, width=width, dark=dark)
    chromium.wait_for("document.getElementById('model').textContent.startsWith('first, version')")
    paint(chromium, "a red circle left of a blue square", seed=3, max_nfe=9)
    chromium.wait_for("document.getElementById('status').textContent === 'Done'")
    shown = chromium.run("document.querySelector('#frame img').src").partition(",")[2]
    alone = Alone(run_dir / "policy").png("a red circle left of a blue square", 3, max_nfe=9)
    assert base64.b64decode(shown) == alone
    actions = chromium.run("[...document.querySelectorAll('#steps b')].map((b) => b.textContent)")
    assert actions
    assert set(actions) <= {"continue", "stop", "look", "restart", "leap-2"}
    chromium.wait_for("[...document.images].every((image) => image.complete && image.naturalWidth === 64)")
    assert len(actions) == chromium.run("document.querySelectorAll('#steps img').length")
    assert "seed 3" in chromium.run("document.getElementById('cost').textContent")
    assert chromium.run("document.documentElement.scrollWidth") <= width  # nothing is cut off sideways
    chromium.wait_for("document.getAnimations().every((one) => one.playState === 'finished')")
    chromium.screenshot(file := tmp_path / "page.png")
    picture = Image.open(io.BytesIO(file.read_bytes())).convert("L")
    assert (picture.getpixel((2, 2)) < 80) == dark  # type: ignore[operator]
    assert chromium.complaints == []
    if kept := os.environ.get("KEEP_SCREENSHOTS"):
        (Path(kept) / f"page-{width}-{'dark' if dark else 'light'}.png").write_bytes(file.read_bytes())


def test_a_prompt_is_text_and_nothing_else(chromium: Browser, site: Site) -> None:
    chromium.open(site.url, width=800)
    paint(chromium, INJECTION, seed=1)
    chromium.wait_for("document.getElementById('status').textContent === 'Done'")
    assert chromium.run("document.querySelector('#frame img').alt") == INJECTION
    assert chromium.run("window.owned === undefined && document.scripts.length === 1")


def test_what_goes_wrong_is_said(chromium: Browser, site: Site) -> None:
    chromium.open(site.url, width=800)
    paint(chromium, " word" * 301)
    chromium.wait_for("document.getElementById('status').className === 'error'")
    assert "300 words" in chromium.run("document.getElementById('status').textContent")
    assert not chromium.run("document.getElementById('paint').disabled")


def test_where_a_token_is_asked_for_the_page_asks_for_it(chromium: Browser, painter: Painter) -> None:
    site = Site(painter, AccessRules(token_digest=digest_of(TOKEN)))
    chromium.open(site.url, width=800)
    assert chromium.run("document.getElementById('token-label').hidden")
    paint(chromium, "a red circle", seed=1)
    chromium.wait_for("!document.getElementById('token-label').hidden")
    paint(chromium, "a red circle", seed=1, token=TOKEN)
    chromium.wait_for("document.getElementById('status').textContent === 'Done'")
    site.close()
