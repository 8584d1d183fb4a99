"""The client's routing and retries, against actors whose answers and deaths the test decides."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from rewards_service.client import ActorClient, PendingScores
from rewards_service.contracts import Scores
from rewards_service.scoring import ScoringError
from tests.rewards_service.fakes import flat_images


class Method:
    """`handle.method`: remembers its calls; `answers` holds their futures."""

    def __init__(self, answer: Any = None) -> None:
        self.answers: list[Future[Any]] = []
        self.arguments: list[tuple[Any, ...]] = []
        self._answer = answer

    def remote(self, *arguments: Any) -> Method:
        self.arguments.append(arguments)
        self.answers.append(Future())
        if self._answer is not None:
            self.answers[-1].set_result(self._answer)
        return self

    def future(self) -> Future[Any]:
        return self.answers[-1]


class Actor:
    """Looks like a reward actor's handle."""

    def __init__(self) -> None:
        self.sources = Method({"level": "fake"})
        self.score = Method()


def answer(rows: int, level: float = 1.0) -> Scores:
    return {"level": np.full(rows, level, dtype=np.float32)}


def submit(client: ActorClient, rows: int) -> PendingScores:
    return client.submit(flat_images(range(rows)), [f"prompt {row}" for row in range(rows)])


@pytest.fixture
def actors(ray_session: None) -> list[Actor]:
    return [Actor(), Actor(), Actor()]


def calls(actors: list[Actor]) -> list[int]:
    return [len(actor.score.answers) for actor in actors]


def test_a_call_goes_where_the_fewest_images_are_under_way(actors: list[Actor]) -> None:
    client = ActorClient(actors)
    for rows, expected in ((5, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (2, [1, 2, 1]), (4, [1, 2, 2])):
        submit(client, rows)
        assert calls(actors) == expected
    actors[1].score.answers[0].set_result(answer(2))  # An answer counts though nobody has asked for it yet.
    submit(client, 1)
    assert calls(actors) == [1, 3, 2]


def test_a_lost_call_is_sent_elsewhere_with_the_same_reference(actors: list[Actor]) -> None:
    client = ActorClient(actors[:2])
    pending = submit(client, 2)
    actors[0].score.answers[0].set_exception(ActorUnavailableError("gone", None))
    actors[1].score._answer = answer(2, level=7.0)
    assert pending.result()["level"].tolist() == [7, 7]
    assert client.retries == 1
    assert actors[1].score.arguments == actors[0].score.arguments
    # The lost one rests: the next calls avoid it although it has nothing to do.
    submit(client, 3)
    submit(client, 3)
    assert calls(actors[:2]) == [1, 3]


def test_a_replica_comes_back_after_its_rest(actors: list[Actor]) -> None:
    client = ActorClient(actors[:1])
    pending = submit(client, 1)
    actors[0].score.answers[0].set_exception(ActorDiedError())
    actors[0].score._answer = answer(1)
    assert pending.result()["level"].tolist() == [1]
    assert (client.retries, calls(actors[:1])) == (1, [2])


def test_one_death_that_takes_many_calls_is_one_failure(actors: list[Actor]) -> None:
    client = ActorClient(actors[:1])
    lost = [submit(client, 1) for _ in range(6)]
    for future in actors[0].score.answers:
        future.set_exception(ActorDiedError())
    actors[0].score._answer = answer(1)
    for pending in lost:
        pending.result()
    assert client.retries == 6
    assert client._replicas[0].failures == 0
    assert client._replicas[0].outstanding == 0


def test_the_deadline_ends_waiting_and_retrying(actors: list[Actor]) -> None:
    client = ActorClient(actors[:1], deadline_s=0.3)
    with pytest.raises(TimeoutError, match="no answer to 'score' within deadline_s"):
        submit(client, 1).result()

    class Dead(Method):
        def remote(self, *arguments: Any) -> Method:
            super().remote(*arguments)
            self.answers[-1].set_exception(ActorDiedError())
            return self

    actors[0].score = Dead()
    with pytest.raises(TimeoutError, match="no answer to 'score' within deadline_s"):
        submit(client, 1).result()
    assert 1 <= client.retries <= 4  # At 0, 0.1 and 0.3 seconds at most, for the rests double.


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "scorer 'fake' gave nothing as 'level' for 2 prompts from 'prompt 0'"),
        (answer(3), r"scorer 'fake' gave an array of shape \[3\] as 'level' for 2 prompts"),
        (
            {"level": np.array([1.0, np.inf])},
            "scorer 'fake' gave a non-finite 'level' for the prompt 'prompt 1'",
        ),
    ],
)
def test_every_answer_is_checked_on_arrival(actors: list[Actor], scores: Scores, message: str) -> None:
    client = ActorClient(actors[:1])
    pending = submit(client, 2)
    actors[0].score.answers[0].set_result(scores)
    with pytest.raises(ScoringError, match=message):
        pending.result()


def test_a_pool_has_replicas(ray_session: None) -> None:
    with pytest.raises(ValueError, match="replicas: none; accepted: at least one"):
        ActorClient([])
