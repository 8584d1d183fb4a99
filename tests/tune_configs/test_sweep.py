"""Whole sweeps on the toy world, in one Ray session: what they leave, what they survive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tune_configs.toy_sweep import run, toy_sweep

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]

LR = {"space": {"ppo.lr": {"grid": [1.0e-4, 3.0e-4, 1.0e-3]}}}


def test_a_sweep(tmp_path: Path) -> None:
    outcomes = run(toy_sweep(tmp_path / "lr", LR))
    assert [outcome.status for outcome in outcomes.values()] == ["finished"] * 3
