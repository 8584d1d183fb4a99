"""Services on a real Ray: the contract of a client, and what starting, scaling and stopping promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from numpy.typing import NDArray

from rewards_service import service
from rewards_service.contracts import RewardClient, Scorer
from rewards_service.local import LocalClient
from rewards_service.scoring import ScoringError
from tests.rewards_service.fakes import (
    brightness_scorers,
    checksum_scorers,
    checksums,
    fake_scorers,
    flat_images,
    spec,
)

Connect = Callable[[], RewardClient]


def two_kinds() -> list[Scorer]:
    return [*fake_scorers(), *checksum_scorers()]


@pytest.fixture(scope="module")
def pools(ray_session: None) -> Iterator[str]:
    """Two replicas that work a little for each call, and a pool of another scorer."""
    handles = service.start(
        "contract", [spec("fakes", partial(fake_scorers, 5), replicas=2), spec("sums", checksum_scorers)]
    )
    yield "contract"
    for handle in handles:
        ray.kill(handle)


@pytest.fixture(params=["in this process", "as a service"])
def connected(request: pytest.FixtureRequest) -> RewardClient:
    """The same scorers both ways."""
    if request.param == "in this process":
        return LocalClient(two_kinds())
    return service.connect(request.getfixturevalue("pools"), deadline_s=60)


def test_rows_belong_to_their_images_and_outputs_to_their_names(connected: RewardClient) -> None:
    images, prompts = flat_images([5, 6, 7]), ["a", "bb", "ccc"]
    scores = connected.score(images, prompts)
    assert list(scores) == ["brightness", "length", "broken", "checksum"]
    assert scores["brightness"].tolist() == [5, 6, 7]
    assert scores["length"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(scores["checksum"], checksums(images, prompts))
    assert list(connected.score(images, prompts, ["checksum", "length"])) == ["checksum", "length"]


def test_images_may_change_once_submitted(connected: RewardClient) -> None:
    images = flat_images([5, 6, 7, 8])[::2]
    pending = connected.submit(images, ["a", "b"])
    images[:] = 0
    assert pending.result()["brightness"].tolist() == [5, 7]
    assert pending.result() is pending.result()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["fine", "nan"], "scorer 'broken' gave a non-finite 'broken' for the prompt 'nan'"),
        (["short", "fine"], r"scorer 'broken' gave an array of shape \[1\] as 'broken' for 2 prompts"),
        (["mute", "fine"], "scorer 'broken' gave nothing as 'broken' for 2 prompts from 'mute'"),
        (["poison", "fine"], "scorer 'brightness' failed on 2 prompts from 'poison': RuntimeError"),
    ],
)
def test_a_bad_answer_is_one_error_and_scoring_goes_on(
    connected: RewardClient, prompts: Sequence[str], message: str
) -> None:
    pending = connected.submit(flat_images([1]), ["good"])
    with pytest.raises(ScoringError, match=message):
        connected.score(flat_images([1, 2]), prompts)
    assert pending.result()["brightness"].tolist() == [1]
    assert connected.score(flat_images([3]), ["after it"])["brightness"].tolist() == [3]


def test_a_request_nobody_can_answer_is_the_callers_mistake(connected: RewardClient) -> None:
    with pytest.raises(ValueError, match="'beauty' is scored by nobody; accepted: brightness, length"):
        connected.submit(flat_images([1]), ["a"], ["beauty"])
    with pytest.raises(ValueError, match="2 images and 1 prompts"):
        connected.submit(flat_images([1, 2]), ["a"])


def test_a_learned_scorer_gives_the_same_in_the_service(
    ray_session: None, world_folder: Path, pictures: NDArray[np.uint8], captions: list[str]
) -> None:
    build = partial(preference_alone, world_folder / "preference")
    handles = service.start("learned", [spec("preference", build)])
    client = service.connect("learned", deadline_s=60)
    pending = [client.submit(pictures[i : i + 3], captions[i : i + 3]) for i in range(0, 18, 3)]
    expected = LocalClient(build()).score(pictures[:18], captions[:18])["image_reward"]
    answers = [each.result()["image_reward"] for each in pending]
    ray.kill(handles[0])
    np.testing.assert_array_equal(np.concatenate(answers), expected)


def preference_alone(folder: Path) -> list[Scorer]:
    from rewards_service.scorers.preference import PreferenceScorer

    return [PreferenceScorer.from_folder(folder)]


def test_a_detached_service_is_found_scaled_and_stopped_by_name(ray_session: None) -> None:
    service.start("shared", [spec("fakes", brightness_scorers)], detached=True)
    try:
        assert "shared" in service.services()
        client = service.connect("shared", deadline_s=60)
        assert client.identity == "fakes"
        with pytest.raises(ValueError, match="service='shared' runs already"):
            service.start("shared", [spec("fakes", brightness_scorers)])
        under_way = [client.submit(flat_images([level]), ["a"]) for level in range(20)]
        service.scale("shared", "fakes", 3)
        (fakes,) = service.status("shared")
        assert (fakes.name, fakes.replicas, len(fakes.stats)) == ("fakes", 3, 3)
        service.scale("shared", "fakes", 1)
        (fakes,) = service.status("shared")
        assert (fakes.replicas, fakes.restarts) == (1, 0)
        answers = [each.result()["brightness"].tolist() for each in under_way]
        assert answers == [[level] for level in range(20)]
        with pytest.raises(ValueError, match="fake=2: no such pool in 'shared'; give one of fakes"):
            service.scale("shared", "fake", 2)
        with pytest.raises(ValueError, match="fakes=0: give an integer >= 1"):
            service.scale("shared", "fakes", 0)
    finally:
        assert service.stop("shared") == 1
    with pytest.raises(ValueError, match=r"service='shared' does not run .*: addiffusion rewards start"):
        service.connect("shared")


def test_status_counts_what_was_scored(pools: str) -> None:
    def scored() -> list[tuple[int, int]]:
        return [
            (sum(each.images for each in pool.stats), sum(each.calls for each in pool.stats))
            for pool in service.status(pools)
        ]

    before = scored()
    client = service.connect(pools)
    for _ in range(3):
        client.score(flat_images([1, 2]), ["a", "b"], ["checksum"])
    client.score(flat_images([1]), ["a"], ["length"])
    (fakes, sums), (old_fakes, old_sums) = scored(), before
    assert (sums[0] - old_sums[0], sums[1] - old_sums[1]) == (6, 3)
    assert (fakes[0] - old_fakes[0], fakes[1] - old_fakes[1]) == (1, 1)
    status = {pool.name: pool for pool in service.status(pools)}
    assert all(each.queue == 0 for pool in status.values() for each in pool.stats)
    assert status["sums"].stats[0].p50_ms > 0


def test_a_service_that_cannot_start_leaves_nothing_behind(ray_session: None) -> None:
    def twice() -> list[Scorer]:
        return [*brightness_scorers(), *brightness_scorers()]

    with pytest.raises(ValueError, match="'brightness' and 'brightness' both give output 'brightness'"):
        service.start("broken", [spec("good", checksum_scorers), spec("bad", twice)])
    service.stop("broken")  # waits until those that were killed are gone
    assert "broken" not in service.services()
