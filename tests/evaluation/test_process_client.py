"""Scoring in another process: the same answers, the same refusals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from evaluation.process_client import scoring_process
from rewards_service.contracts import Images, Scorer, Scores
from rewards_service.local import LocalClient
from rewards_service.scoring import ScoringError


class Half:
    """A scorer that can refuse."""

    name = "half"
    outputs: tuple[str, ...] = ("image_reward",)

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        if "refuse" in prompts:
            raise RuntimeError("no")
        return {"image_reward": np.full(len(images), 0.5, np.float32)}


def open_half() -> list[Scorer]:
    return [Half()]


def test_another_process_scores_as_this_one_does() -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    with scoring_process(open_half) as client:
        pending = [client.submit(images, ["a", "b"]) for _ in range(3)]
        refused = client.submit(images, ["a", "refuse"])
        expected = LocalClient(open_half()).score(images, ["a", "b"])
        for answer in pending:
            assert answer.result().keys() == expected.keys()
            np.testing.assert_array_equal(answer.result()["image_reward"], expected["image_reward"])
        with pytest.raises(ScoringError, match="scorer 'half' failed"):
            refused.result()
