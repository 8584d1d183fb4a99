"""The report in a real browser: on a phone and on a desk."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.report import write_report
from tests.browser import CHROMIUM, browser
from tests.evaluation.stored_run import write_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

LONG = "unpronounceable" * 20
SCROLLED = ".scroll, .frames"
"""What may be wider than the page: it is moved sideways by itself."""
CUT_OFF = f"""
    [...document.body.querySelectorAll('*')]
        .filter(each => !each.closest('{SCROLLED}'))
        .filter(each => each.getBoundingClientRect().right > innerWidth + 1)
        .map(each => each.tagName + ': ' + each.textContent.slice(0, 60))
"""


def test_nothing_is_cut_off_and_every_picture_is_shown(tmp_path: Path) -> None:
    report = write_report(write_run(tmp_path / LONG[:60], prompt=LONG))
    with browser(tmp_path) as chromium:
        for width in (360, 1200):
            chromium.open(report.absolute().as_uri(), width=width)
            assert chromium.run("innerWidth") == width
            assert chromium.run("document.documentElement.scrollWidth") <= width
            assert chromium.run(CUT_OFF) == []
            assert chromium.run("document.images.length") > 8
            assert chromium.run("[...document.images].filter(each => !each.naturalWidth).length") == 0
            assert chromium.run("parseFloat(getComputedStyle(document.body).fontSize)") >= 14
        assert chromium.complaints == []
