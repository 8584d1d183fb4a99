"""The checks that every answer passes, through the client that scores in this process."""

from __future__ import annotations

import numpy as np
import pytest

from rewards_service.local import LocalClient
from rewards_service.scoring import ScoringError
from tests.rewards_service.fakes import Brightness, Gated, fake_scorers, flat_images


def test_rows_come_back_in_order() -> None:
    scores = LocalClient(fake_scorers()).submit(flat_images([3, 1, 2]), ["a", "bb", ""]).result()
    assert scores["brightness"].tolist() == [3, 1, 2]
    assert scores["length"].tolist() == [1, 2, 0]
    assert scores["broken"].tolist() == [1, 1, 1]


def test_only_wanted_outputs_are_scored_and_returned() -> None:
    idle = Gated()
    idle.name, idle.outputs = "idle", ("idle",)
    client = LocalClient([Brightness(), idle])
    assert set(client.score(flat_images([1]), ["a"], outputs=["length"])) == {"length"}
    assert idle.sizes == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["fine", "nan"], "scorer 'broken' gave a non-finite 'broken' for the prompt 'nan'"),
        (["short", "fine"], r"scorer 'broken' gave an array of shape \[1\] as 'broken' for 2 prompts"),
        (["mute", "fine"], "scorer 'broken' gave nothing as 'broken' for 2 prompts from 'mute'"),
        (["fine", "poison"], "scorer 'brightness' failed on 2 prompts from 'fine': RuntimeError: cannot"),
    ],
)
def test_a_bad_answer_names_scorer_and_prompt(prompts: list[str], message: str) -> None:
    with pytest.raises(ScoringError, match=message):
        LocalClient(fake_scorers()).score(flat_images([1, 2]), prompts)


def test_a_request_nobody_can_answer_is_the_callers_mistake() -> None:
    client = LocalClient(fake_scorers())
    with pytest.raises(
        ValueError, match=r"'beauty' is scored by nobody; accepted: brightness, length, broken"
    ):
        client.score(flat_images([1]), ["a"], outputs=["beauty"])
    with pytest.raises(ValueError, match="2 images and 1 prompts"):
        client.score(flat_images([1, 2]), ["a"])
    with pytest.raises(ValueError, match=r"float64\[1, 4, 4, 3\]; accepted: uint8"):
        client.score(flat_images([1]).astype(np.float64), ["a"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'brightness' and 'brightness' both give output 'brightness'"):
        LocalClient([Brightness(), Brightness()])
