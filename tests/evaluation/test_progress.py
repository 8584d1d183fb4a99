"""Progress is for those who wait, and stays away from everybody else."""

import pytest

from evaluation import progress


@pytest.fixture(params=["terminal", "file"])
def shown_on(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
    else:
        monkeypatch.delenv("FORCE_COLOR", raising=False)
    return str(request.param)


def test_nothing_is_shown_before_patience_ends(shown_on: str, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar() as show:
        show("ddim-10", 5, 10)
    assert capsys.readouterr() == ("", "")


def test_a_long_wait_is_shown_on_standard_error(
    shown_on: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", -1.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    with progress.progress_bar() as show:
        show("ddim-10", 5, 10)
        show("dpmpp-5", 10, 10)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "dpmpp-5" in shown.err
    assert "10/10" in shown.err


def test_a_log_gets_a_line_now_and_then_not_one_an_image(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", -1.0)
    with progress.progress_bar() as show:
        for done in range(1, 11):
            show("ddim-10", done, 10)
    assert capsys.readouterr().err == "images 1/10 · ddim-10\n"
