"""What ends a run: numbers that are not finite, lost episodes, a collapsed policy, a signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.events import EventLog
from learner.guard_config import CollapseGuard, GuardsConfig, HackingGuard, LostEpisodesGuard, Reaction
from learner.guards import Guards, StopRequest, TrainingFailure, check_finite
from learner.hacking import Evaluation

Make = Callable[..., Guards]


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


@pytest.fixture
def told() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def guards(tmp_path: Path, told: list[dict[str, Any]]) -> Make:
    """Guards of a run with 8 episodes an iteration; `told` gets their events."""
    return lambda **changes: Guards(GuardsConfig(**changes), 8, EventLog(tmp_path, told.append))


def row(
    iteration: int = 1,
    episodes: int = 8,
    actions: dict[str, float] | None = None,
    nfe_std: float = 5.0,
    entropy: float = 0.05,
    value: float = 0.0,
) -> dict[str, Any]:
    shares = actions or {"continue": 0.98, "stop": 0.02}
    numbers = {"nfe": 50.0, "nfe_std": nfe_std, "entropy": entropy, "return": value}
    return {"iteration": iteration, "episodes": episodes, "actions": shares, **numbers}


def test_losing_episodes_for_a_while_is_said_once_and_forgiven(
    guards: Make, told: list[dict[str, Any]]
) -> None:
    watching = guards(lost_episodes=LostEpisodesGuard(patience_s=60.0))
    for now, episodes in [(0.0, 4), (50.0, 0), (70.0, 8), (100.0, 4), (150.0, 4), (155.0, 8)]:
        assert watching.after_iteration(row(episodes=episodes), now) is None
    assert [event["kind"] for event in told] == ["lost_episodes"] * 4
    assert [event["sentence"].split(" ")[0] for event in told] == ["4", "all", "4", "all"]


def test_losing_episodes_for_long_ends_the_run_unless_it_is_only_to_warn(
    guards: Make, told: list[dict[str, Any]]
) -> None:
    watching = guards(lost_episodes=LostEpisodesGuard(patience_s=60.0))
    watching.after_iteration(row(episodes=4), 10.0)
    watching.after_iteration(row(episodes=4), 60.0)
    with pytest.raises(TrainingFailure, match=r"for 61 s .* \(now 3 of 8\)"):
        watching.after_iteration(row(episodes=3), 71.0)
    told.clear()
    watching = guards(lost_episodes=LostEpisodesGuard(action="warn", patience_s=60.0))
    for now in (10.0, 71.0, 300.0):
        watching.after_iteration(row(episodes=3), now)
    assert [event["numbers"].get("seconds") for event in told] == [None, 61.0]


COLLAPSED: dict[str, Any] = {"nfe_std": 0.0}


@pytest.mark.parametrize(
    ("action", "ended", "events"), [("stop", "collapsed", 1), ("warn", None, 1), ("ignore", None, 0)]
)
def test_one_action_one_length_and_no_chance_is_collapse(
    guards: Make, told: list[dict[str, Any]], action: Reaction, ended: str | None, events: int
) -> None:
    watching = guards(collapse=CollapseGuard(action=action, patience=3))
    results = [watching.after_iteration(row(**COLLAPSED), 0.0) for _ in range(5)]
    assert results[:3] == [None, None, ended]
    assert len(told) == events
    if events:
        assert told[0]["kind"] == "collapse"
        assert "98% of all decisions were continue" in told[0]["sentence"]
        assert told[0]["stops"] == (action == "stop")


@pytest.mark.parametrize(
    "sign",
    [{"nfe_std": 5.0}, {"nfe_std": 0.0, "actions": {"a": 0.5, "b": 0.5}}, {"nfe_std": 0.0, "entropy": 0.6}],
    ids=["a long schedule is mostly continue", "fixed length, but several actions", "still exploring"],
)
def test_one_sign_alone_is_no_collapse(guards: Make, told: list[dict[str, Any]], sign: Any) -> None:
    watching = guards(collapse=CollapseGuard(patience=2))
    assert not any(watching.after_iteration(row(**sign), 0.0) for _ in range(5))
    assert not told


def test_a_collapse_that_ends_is_forgotten_and_a_resumed_run_remembers(guards: Make) -> None:
    collapse = CollapseGuard(patience=2)
    watching = guards(collapse=collapse)
    assert watching.after_iteration(row(**COLLAPSED), 0.0) is None
    assert watching.after_iteration(row(), 0.0) is None
    assert watching.after_iteration(row(**COLLAPSED), 0.0) is None
    resumed = guards(collapse=collapse)
    resumed.begin([row(**COLLAPSED)])
    assert resumed.after_iteration(row(**COLLAPSED), 0.0) == "collapsed"


def evaluation(iteration: int, quality: float) -> Evaluation:
    spread = np.linspace(0.0, 0.01, 16)
    return Evaluation(iteration, tuple(quality + spread), (10.0,) * 16, (10.0,) * 16, 1.0)


@pytest.mark.parametrize(("action", "ended"), [("stop", "reward hacking"), ("warn", None), ("ignore", None)])
def test_return_up_and_held_out_quality_down_is_said_once(
    guards: Make, told: list[dict[str, Any]], action: Reaction, ended: str | None
) -> None:
    watching = guards(hacking=HackingGuard(action=action))
    for iteration in range(1, 13):
        watching.after_iteration(row(iteration, value=0.1 * iteration), 0.0)
    evaluations = [evaluation(1, 0.8), evaluation(6, 0.7), evaluation(12, 0.6)]
    assert watching.after_evaluation(evaluations[:2]) == ended
    assert watching.after_evaluation(evaluations) == ended
    assert [event["kind"] for event in told] == ([] if action == "ignore" else ["reward_hacking"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_a_second_one_insists(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        assert stop.signalled
        assert "once more ends at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
