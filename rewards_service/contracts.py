"""What a scorer and a client of the rewards service promise; read this file first.

Always true here: a batch of N images and N prompts gives arrays with N rows, finite, in the order they
were sent, whatever else was in the batch. A missing or non-finite score is an error, never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Scores = dict[str, NDArray[np.float32]]

#: The scores of one image: a number, or an embedding [D], a name.
ScoreRow = Mapping[str, Any]

#: The metrics that rewards are made of, as weights name them, and the output each one is.
#: `image_reward_now` is for a scorer whose `image_reward` forecasts the finished image from a preview.
METRICS = {
    "clip": "clip_score",
    "aesthetic": "aesthetic",
    "image_reward": "image_reward",
    "image_reward_now": "image_reward_now",
}


class Scorer(Protocol):
    """One frozen reward model: uint8 images [N, H, W, 3] and N prompts in, named float32 arrays out.

    Deterministic. Scalars have shape [N], embeddings [N, D] with unit length.
    """

    name: str
    outputs: tuple[str, ...]

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """Exactly the arrays that `outputs` names."""
        ...


class Pending(Protocol):
    """A scoring request under way."""

    def result(self) -> Scores:
        """Waits for the checked scores, or raises what went wrong."""
        ...


class RewardClient(Protocol):
    """How everything else asks for scores, in another process or in this one.

    `outputs` names the scores that are wanted (None: all); scorers that give none of them do not run.
    """

    def submit(self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None) -> Pending:
        """Starts scoring and returns at once; images of the caller may change afterwards."""
        ...

    def score(self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None) -> Scores:
        """`submit` and wait."""
        ...
