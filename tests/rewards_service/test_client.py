"""The client's routing and retries, against actors whose answers and deaths the test decides."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from rewards_service.client import ActorClient, PendingScores
from rewards_service.contracts import Scores
from rewards_service.routing import ReplicaPool
from rewards_service.scoring import ScoringError
from tests.rewards_service.fakes import fake_scorers, flat_images, spec


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


class Dead(Method):
    """Every call dies."""

    def remote(self, *arguments: Any) -> Method:
        super().remote(*arguments)
        self.answers[-1].set_exception(ActorDiedError())
        return self


class Actor:
    """Looks like a reward actor's handle."""

    def __init__(self, output: str = "level", max_queued: int = 512) -> None:
        self.sources = Method({output: "fake"})
        self.spec = Method(spec("fake", fake_scorers, max_queued=max_queued))
        self.score = Method()


def pool(actors: Sequence[Actor], name: str = "fakes") -> ReplicaPool:
    """A pool whose members are looked up anew: the sequence may change."""
    return ReplicaPool(
        name, lambda: [str(index) for index in range(len(actors))], lambda index: actors[int(index)]
    )


def connect(actors: Sequence[Actor], **options: Any) -> ActorClient:
    return ActorClient([pool(actors)], **options)


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
    client = connect(actors)
    for rows, expected in ((5, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (2, [1, 2, 1]), (4, [1, 2, 2])):
        submit(client, rows)
        assert calls(actors) == expected
    actors[1].score.answers[0].set_result(answer(2))  # An answer counts though nobody has asked for it yet.
    submit(client, 1)
    assert calls(actors) == [1, 3, 2]


def test_a_lost_call_is_sent_elsewhere_with_the_same_reference(actors: list[Actor]) -> None:
    client = connect(actors[:2])
    pending = submit(client, 2)
    actors[0].score.answers[0].set_exception(ActorUnavailableError("gone", None))
    actors[1].score._answer = answer(2, level=7.0)
    assert pending.result()["level"].tolist() == [7, 7]
    assert client.retries == 1
    (*sent, first), (*again, second) = actors[0].score.arguments[0], actors[1].score.arguments[0]
    assert sent == again
    assert (first, second) == (0, 1)  # the replica is told that this is a retry
    # The lost one rests: the next calls avoid it although it has nothing to do.
    submit(client, 3)
    submit(client, 3)
    assert calls(actors[:2]) == [1, 3]


def test_a_replica_comes_back_after_its_rest(actors: list[Actor]) -> None:
    client = connect(actors[:1])
    pending = submit(client, 1)
    actors[0].score.answers[0].set_exception(ActorDiedError())
    actors[0].score._answer = answer(1)
    assert pending.result()["level"].tolist() == [1]
    assert (client.retries, calls(actors[:1])) == (1, [2])


def test_a_lost_call_goes_to_whoever_has_the_name_now(actors: list[Actor]) -> None:
    members = actors[:1]
    client = connect(members)
    pending = submit(client, 1)
    members[0] = actors[1]
    actors[1].score._answer = answer(1, level=3.0)
    actors[0].score.answers[0].set_exception(ActorDiedError())
    assert pending.result()["level"].tolist() == [3]
    assert calls(actors) == [1, 1, 0]


def test_one_death_that_takes_many_calls_is_one_failure(actors: list[Actor]) -> None:
    replicas = pool(actors[:1])
    client = ActorClient([replicas])
    lost = [submit(client, 1) for _ in range(6)]
    for future in actors[0].score.answers:
        future.set_exception(ActorDiedError())
    actors[0].score._answer = answer(1)
    for pending in lost:
        pending.result()
    assert client.retries == 6
    (replica,) = replicas._replicas.values()
    assert (replica.failures, replica.outstanding) == (0, 0)


def test_rests_double_by_a_fixed_schedule(ray_session: None) -> None:
    replicas = pool([Actor()])
    (replica,) = replicas._replicas.values()
    rests = []
    for now in range(1, 10):
        replica.rest(float(now))
        rests.append(replica.resting_until - now)
    assert rests == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


def test_the_deadline_is_one_error_that_names_scorer_wait_and_remedy(actors: list[Actor]) -> None:
    client = connect(actors[:1], deadline_s=0.3)
    remedy = "`addiffusion rewards status` .* rewards.deadline_s"
    with pytest.raises(TimeoutError, match=f"pool 'fakes': no scores of 2 images within 0.3 s; {remedy}"):
        submit(client, 2).result()
    actors[0].score = Dead()
    with pytest.raises(
        TimeoutError, match=r"no scores of 1 images within 0.3 s, sent \d times, last lost .*ActorDiedError"
    ):
        submit(client, 1).result()
    assert 1 <= client.retries <= 4  # At 0, 0.1 and 0.3 seconds at most, for the rests double.


def test_a_caller_that_is_too_fast_waits_for_room(ray_session: None) -> None:
    slow = [Actor(max_queued=4), Actor(max_queued=4)]
    client = connect(slow, deadline_s=0.2)
    for rows in (3, 4, 1):
        submit(client, rows)
    assert calls(slow) == [2, 1]
    with pytest.raises(TimeoutError, match=r"no scores of 2 images within 0.2 s"):
        submit(client, 2)
    assert calls(slow) == [2, 1]  # not sent: no memory is taken where there is no room
    patient = connect(slow)
    for _ in range(2):
        submit(patient, 4)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(submit, patient, 9)  # more than ever fits: once nothing else is under way
        slow[0].score.answers[-1].set_result(answer(4))
        waiting.result(timeout=10)
    assert calls(slow) == [4, 2]


def test_images_are_stored_once_whatever_the_number_of_pools(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Actor("level"), Actor("height")
    client = ActorClient([pool([first], "one"), pool([second], "two")])
    stored: list[Any] = []
    put = ray.put

    def remember(value: Any) -> Any:
        stored.append(value)
        return put(value)

    monkeypatch.setattr(ray, "put", remember)
    pending = client.submit(flat_images(range(8))[::2], ["a"] * 4)
    (images,) = stored
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    assert first.score.arguments[0][0] == second.score.arguments[0][0]
    first.score.answers[0].set_result(answer(4))
    second.score.answers[0].set_result({"height": np.zeros(4, np.float32)})
    assert list(pending.result()) == ["level", "height"]
    client.submit(flat_images([1]), ["a"], ["height"])
    assert calls([first, second]) == [1, 2]


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
    client = connect(actors[:1])
    pending = submit(client, 2)
    actors[0].score.answers[0].set_result(scores)
    with pytest.raises(ScoringError, match=message):
        pending.result()


def test_pools_that_cannot_be_used_together_are_refused(ray_session: None) -> None:
    with pytest.raises(ValueError, match="pools: none; accepted: at least one"):
        ActorClient([])
    with pytest.raises(ValueError, match="pools: 'one' and 'two' give 'level'"):
        ActorClient([pool([Actor()], "one"), pool([Actor()], "two")])
