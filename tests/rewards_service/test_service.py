"""Reward actors and their client, on a real Ray."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray

from rewards_service.actor import replica_names, start
from rewards_service.client import ActorClient
from rewards_service.contracts import Scorer
from rewards_service.local import LocalClient
from rewards_service.scoring import ScoringError
from tests.rewards_service.fakes import fake_scorers, flat_images


@pytest.fixture(scope="module")
def pool(ray_session: None) -> Iterator[list[Any]]:
    """Two replicas that need some milliseconds for each call."""
    handles = start(partial(fake_scorers, 5), name="fakes", replicas=2, num_cpus=0.5, max_images=4)
    yield handles
    for handle in handles:
        ray.kill(handle)


@pytest.fixture
def client(pool: list[Any]) -> ActorClient:
    return ActorClient(replica_names("fakes", 2), deadline_s=60)


def test_answers_as_the_local_client_does(client: ActorClient) -> None:
    images, prompts = flat_images([5, 6, 7]), ["a", "bb", "ccc"]
    expected = LocalClient(fake_scorers()).score(images, prompts)
    scores = client.score(images, prompts)
    assert client.outputs == tuple(expected)
    for name, rows in expected.items():
        np.testing.assert_array_equal(scores[name], rows)
    assert set(client.score(images, prompts, outputs=["length"])) == {"length"}


def test_images_may_change_once_submitted(client: ActorClient) -> None:
    images = flat_images([5, 6, 7, 8])[::2]
    pending = client.submit(images, ["a", "b"])
    images[:] = 0
    assert pending.result()["brightness"].tolist() == [5, 7]
    assert pending.result() is pending.result()


def test_errors_arrive_with_their_prompt(client: ActorClient) -> None:
    with pytest.raises(ScoringError, match="scorer 'broken' gave a non-finite 'broken' for the prompt 'nan'"):
        client.score(flat_images([1, 2]), ["fine", "nan"])
    with pytest.raises(ScoringError, match="scorer 'brightness' failed on 1 prompts from 'poison'"):
        client.score(flat_images([1]), ["poison"])
    with pytest.raises(ValueError, match="'beauty' is scored by nobody"):
        client.submit(flat_images([1]), ["a"], ["beauty"])
    assert client.retries == 0


def test_no_call_is_lost_when_replicas_die_under_load(client: ActorClient, pool: list[Any]) -> None:
    """First one replica, so that the other must take its calls; later that one too."""
    calls = [[(7 * i + j) % 256 for j in range(1 + i % 4)] for i in range(160)]
    pending = [
        client.submit(flat_images(levels), [f"{'x' * i} {level}" for level in levels])
        for i, levels in enumerate(calls)
    ]
    for i, (levels, each) in enumerate(zip(calls, pending, strict=True)):
        scores = each.result()
        assert scores["brightness"].tolist() == levels
        assert scores["length"].tolist() == [i + 1 + len(str(level)) for level in levels]
        if i in (1, 81):
            ray.kill(pool[i // 80], no_restart=False)
    assert client.retries > 0


def test_a_pool_that_cannot_be_is_refused(ray_session: None) -> None:
    with pytest.raises(ValueError, match="no actor is called 'nobody-0'"):
        ActorClient(["nobody-0"])
    with pytest.raises(ValueError, match="replicas: 0; accepted: 1 or more"):
        start(fake_scorers, replicas=0)
    with pytest.raises(ValueError, match="detached: True without a name"):
        start(fake_scorers, detached=True)


def test_a_learned_scorer_gives_the_same_in_the_service_until_it_is_gone(
    ray_session: None, world_folder: Path, pictures: NDArray[np.uint8], captions: list[str]
) -> None:
    build = partial(preference_alone, world_folder / "preference")
    (handle,) = start(build, num_cpus=0.5)
    client = ActorClient([handle], deadline_s=60)
    pending = [client.submit(pictures[i : i + 3], captions[i : i + 3]) for i in range(0, 18, 3)]
    expected = LocalClient(build()).score(pictures[:18], captions[:18])["image_reward"]
    answers = [each.result()["image_reward"] for each in pending]
    np.testing.assert_array_equal(np.concatenate(answers), expected)

    hurried = ActorClient([handle], deadline_s=1.0)
    ray.kill(handle)
    with pytest.raises(TimeoutError, match="no answer to 'score' within deadline_s=1"):
        hurried.score(pictures[:1], captions[:1])
    assert hurried.retries > 0


def preference_alone(folder: Path) -> list[Scorer]:
    from rewards_service.scorers.preference import PreferenceScorer

    return [PreferenceScorer.from_folder(folder)]
