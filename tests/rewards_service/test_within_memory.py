"""Running out of memory: smaller pieces, the same rows, and one clear error when nothing fits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rewards_service.contracts import Images, Scores
from rewards_service.local import LocalClient
from rewards_service.scoring import ScoringError
from rewards_service.within_memory import WithinMemory
from tests.rewards_service.fakes import Checksum, checksums, flat_images


class Small:
    """Has memory for `capacity` images and remembers the sizes it was asked for."""

    name = "small"
    outputs: tuple[str, ...] = ("small",)

    def __init__(self, capacity: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.capacity, self.error = capacity, error
        self.sizes: list[int] = []

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        self.sizes.append(len(images))
        if len(images) > self.capacity:
            raise self.error("no memory")
        return {"small": checksums(images, prompts)}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(error: type[Exception]) -> None:
    scorer = Small(3, error)
    within = WithinMemory(scorer)
    images, prompts = flat_images(range(11)), [f"prompt {i}" for i in range(11)]
    np.testing.assert_array_equal(within.score(images, prompts)["small"], checksums(images, prompts))
    assert scorer.sizes == [11, 6, 3, 3, 3, 2]
    scorer.sizes.clear()
    within.score(images[:6], prompts[:6])
    assert scorer.sizes == [3, 3]  # what did not fit is not tried again


def test_a_scorer_never_sees_more_than_the_batch_size() -> None:
    scorer = Small(100)
    images = flat_images(range(10))
    scores = WithinMemory(scorer, batch_size=4).score(images, ["a"] * 10)
    np.testing.assert_array_equal(scores["small"], checksums(images, ["a"] * 10))
    assert scorer.sizes == [4, 4, 2]


def test_no_memory_for_one_image_is_one_error_that_says_what_to_do() -> None:
    with pytest.raises(
        ScoringError, match=r"scorer 'small' failed.*no memory for a single image of 4 x 4; give"
    ):
        LocalClient([Small(0)]).score(flat_images([1, 2]), ["a", "b"])


def test_other_errors_are_not_memory() -> None:
    scorer = Small(1, RuntimeError)
    with pytest.raises(ScoringError, match="scorer 'small' failed on 2 prompts from 'a': RuntimeError"):
        LocalClient([scorer]).score(flat_images([1, 2]), ["a", "b"])
    assert scorer.sizes == [2]


def test_rows_of_one_piece_never_move_to_the_images_of_another() -> None:
    """A row too many in one piece and one too few in the next add up to the right number."""

    class Shifted(Checksum):
        def score(self, images: Images, prompts: Sequence[str]) -> Scores:
            rows = super().score(images, prompts)["checksum"]
            return {"checksum": np.concatenate([rows, rows[:1]]) if "first" in prompts else rows[1:]}

    within = WithinMemory(Shifted(), batch_size=2)
    with pytest.raises(
        ScoringError, match=r"scorer 'checksum' gave \[3, 1\] rows of 'checksum' for pieces of"
    ):
        within.score(flat_images(range(4)), ["first", "b", "c", "d"])
