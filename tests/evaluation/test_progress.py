"""The bar is for those who wait, and stays away from everybody else."""

import pytest

from evaluation import progress


def test_nothing_is_drawn_before_patience_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar() as show:
        show("ddim-10", 5, 10)
    assert capsys.readouterr() == ("", "")


def test_a_long_wait_is_shown_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", -1.0)
    with progress.progress_bar() as show:
        show("ddim-10", 5, 10)
        show("dpmpp-5", 10, 10)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "dpmpp-5" in shown.err
    assert "10/10" in shown.err
