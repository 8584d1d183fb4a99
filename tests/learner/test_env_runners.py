"""Work is spread over the env runners that live, and done once; with none left the wait ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.contracts import EpisodeRequest
from learner.env_runners import EnvRunners
from learner.events import EventLog, read_events
from learner.guards import TrainingFailure

REQUESTS = [EpisodeRequest("a prompt", seed) for seed in range(7)]


@dataclass(frozen=True)
class Done:
    request: EpisodeRequest
    by: int


class FakeGroup:
    """RLlib's group of env runners: `dying` of them give nothing back and are gone from then on."""

    def __init__(self, alive: list[int], dying: list[int], restorable: bool = True) -> None:
        self.alive, self.dying, self.restorable = alive, dying, restorable
        self.restarts = 0

    def num_remote_worker_restarts(self) -> int:
        return self.restarts

    def num_healthy_remote_env_runners(self) -> int:
        return len(self.alive)

    def healthy_env_runner_ids(self) -> list[int]:
        return list(self.alive)

    def foreach_env_runner(self, work: Any, local_env_runner: bool) -> list[Any]:
        assert not local_env_runner
        results = [work(SimpleNamespace(index=index)) for index in self.alive if index not in self.dying]
        self.alive = [index for index in self.alive if index not in self.dying]
        return results

    def restore(self, _: Any) -> None:
        if self.restorable:
            self.restarts += len(self.dying)
            self.alive = list(self.dying)
            self.dying = []


def runners(group: FakeGroup, folder: Path, patience_s: float = 60.0) -> EnvRunners:
    algorithm: Any = SimpleNamespace(env_runner_group=group, restore_env_runners=group.restore)
    return EnvRunners(algorithm, 2, patience_s, EventLog(folder, lambda row: None))


def work(runner: Any, share: list[EpisodeRequest]) -> list[Done]:
    return [Done(request, runner.index) for request in share]


def test_each_request_is_done_once_in_its_place(tmp_path: Path) -> None:
    done = runners(FakeGroup([1, 2], []), tmp_path).spread(REQUESTS, work)
    assert [each.request for each in done] == REQUESTS
    assert [each.by for each in done] == [1, 2, 1, 2, 1, 2, 1]


def test_what_a_dying_one_leaves_is_done_by_those_that_live(tmp_path: Path) -> None:
    done = runners(FakeGroup([1, 2], [2]), tmp_path).spread(REQUESTS, work)
    assert [each.request for each in done] == REQUESTS
    assert {each.by for each in done} == {1}


def test_all_gone_and_back_is_said(tmp_path: Path) -> None:
    done = runners(FakeGroup([1, 2], [1, 2]), tmp_path).spread(REQUESTS, work)
    assert [each.request for each in done] == REQUESTS
    assert [event.sentence for event in read_events(tmp_path)] == [
        "all 2 env runners are gone; they are started again",
        "2 of 2 env runners are back",
    ]


def test_a_death_is_said_once_whether_or_not_it_is_back_already(tmp_path: Path) -> None:
    group = FakeGroup([1, 2], [])
    told = runners(group, tmp_path)

    def said() -> list[tuple[str, float]]:
        told.say_losses()
        return [
            (event.sentence.split(" with ")[0], event.numbers["alive"]) for event in read_events(tmp_path)
        ]

    assert said() == []
    group.alive = [1]
    assert said() == [("1 of 2 env runners died", 1)]
    group.alive, group.restarts = [1, 2], 1
    assert len(said()) == 1, "it is back, and was told of"
    group.restarts = 2
    assert said()[1:] == [("1 of 2 env runners died", 2)], "it died and came back in between"
    group.alive = []
    assert len(said()) == 2, "of all of them the wait speaks"
    group.alive, group.restarts = [1, 2], 4
    assert len(said()) == 2


def test_all_gone_for_good_is_a_failure_after_the_patience(tmp_path: Path) -> None:
    waiting = runners(FakeGroup([], [], restorable=False), tmp_path, patience_s=0.5)
    with pytest.raises(TrainingFailure, match=r"no env runner came back within 0\.5 s") as failure:
        waiting.wait()
    assert failure.value.kind == "env_runners"
