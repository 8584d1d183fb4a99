"""What ends a run: numbers that are not finite, lost episodes, a collapsed policy, a signal."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from learner.guards import CollapseDetector, LostEpisodes, StopRequest, TrainingFailure, check_finite


def test_finite_numbers_pass() -> None:
    check_finite({"return": 0.5}, {"layer": torch.ones(3)}, iteration=1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_metric_is_named(bad: float) -> None:
    with pytest.raises(TrainingFailure, match="iteration 7: value_loss is"):
        check_finite({"return": 0.0, "value_loss": bad}, {}, iteration=7)


def test_bad_weights_are_named() -> None:
    weights = {"good": torch.ones(2), "layers.0.weight": torch.tensor([1.0, float("nan")])}
    with pytest.raises(TrainingFailure, match=r"weights layers\.0\.weight"):
        check_finite({}, weights, iteration=3)


def test_losing_episodes_for_a_while_is_forgiven() -> None:
    lost = LostEpisodes(expected=8, patience_s=60.0)
    for now, episodes in [(0.0, 4), (50.0, 0), (70.0, 8), (100.0, 4), (150.0, 4), (155.0, 8)]:
        lost.update(episodes, now)


def test_losing_episodes_for_long_is_not() -> None:
    lost = LostEpisodes(expected=8, patience_s=60.0)
    lost.update(4, 10.0)
    lost.update(4, 60.0)
    with pytest.raises(TrainingFailure, match=r"for 61 s .* \(now 3 of 8\)"):
        lost.update(3, 71.0)


def test_one_action_and_one_length_is_collapse() -> None:
    detector = CollapseDetector(patience=3)
    told = [detector.update({"continue": 0.98, "stop": 0.02}, 50.0, 0.0) for _ in range(3)]
    assert told == [False, False, True]


@pytest.mark.parametrize(
    ("shares", "spread"),
    [({"continue": 0.98, "stop": 0.02}, 5.0), ({"continue": 0.5, "stop": 0.5}, 0.0)],
    ids=["a long schedule is mostly continue", "fixed length, but several actions"],
)
def test_either_sign_alone_is_no_collapse(shares: dict[str, float], spread: float) -> None:
    detector = CollapseDetector(patience=2)
    assert not any(detector.update(shares, 50.0, spread) for _ in range(5))


def test_a_collapse_that_ends_is_forgotten() -> None:
    detector = CollapseDetector(patience=2)
    detector.update({"stop": 1.0}, 4.0, 0.0)
    assert not detector.update({"stop": 0.6, "continue": 0.4}, 6.0, 2.0)
    assert not detector.update({"stop": 1.0}, 4.0, 0.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_a_second_one_insists(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        assert stop.signalled
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
