"""Fixed rules as Deciders: what they do in terms of an engine's actions.

Always true here: a rule decides from the episode alone, by numbers that were set before; it is never tuned on
a prompt. Every choice is legal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from actors.schedule import NoiseLevel
from actors.solvers import step_ratio

if TYPE_CHECKING:
    from actors.engine import Episode

Mask = NDArray[np.bool_]
Choices = NDArray[np.int64]


class ContinueDecider:
    """Continues to the end of the schedule, then stops."""

    def __init__(self, action_names: Sequence[str]) -> None:
        self._preference = [action_names.index(name) for name in ("continue", "stop")]

    def __call__(
        self, episodes: Sequence[Episode], observations_BD: NDArray[np.float32], mask_BA: Mask
    ) -> Choices:
        """An action index for each episode."""
        return _first_legal(mask_BA, self._preference)


class BestOfDecider:
    """Ends every attempt, looks at it, restarts while it may; the engine returns the best it looked at."""

    def __init__(self, action_names: Sequence[str]) -> None:
        self._preference = [action_names.index(name) for name in ("continue", "look", "restart", "stop")]

    def __call__(
        self, episodes: Sequence[Episode], observations_BD: NDArray[np.float32], mask_BA: Mask
    ) -> Choices:
        """An action index for each episode."""
        return _first_legal(mask_BA, self._preference)


class RefineDecider:
    """Refines once, in the middle of the schedule or at the first point after it where that is possible."""

    def __init__(self, action_names: Sequence[str]) -> None:
        self._plain = [action_names.index(name) for name in ("continue", "stop")]
        self._refine = [action_names.index("refine"), *self._plain]

    def __call__(
        self, episodes: Sequence[Episode], observations_BD: NDArray[np.float32], mask_BA: Mask
    ) -> Choices:
        """An action index for each episode."""
        due_B = [
            not episode.refinements and episode.step_index >= episode.num_steps // 2 for episode in episodes
        ]
        refining_B, plain_B = _first_legal(mask_BA, self._refine), _first_legal(mask_BA, self._plain)
        return np.where(due_B, refining_B, plain_B)


class _Predictions(NamedTuple):
    """The network's last two clean predictions of an episode, with their levels."""

    before: tuple[torch.Tensor, NoiseLevel] | None
    last: tuple[torch.Tensor, NoiseLevel]


class StableDecider:
    """Leaves out the next denoiser call where the last prediction was foreseen.

    Foreseen: it lies within `tolerance` of the line through the two predictions before it, linear in
    log(alpha / sigma), in Euclidean norm relative to its own. The step that follows goes on along that line
    (`reuse`), and the one after it asks the network again. The idea is SADA's (Jiang et al. 2025, arXiv
    2507.17135), which judges by the sign of a product of such differences and leaves out tokens too.
    """

    def __init__(self, action_names: Sequence[str], tolerance: float) -> None:
        self._plain = [action_names.index(name) for name in ("continue", "stop")]
        self._reuse = [action_names.index("reuse"), *self._plain]
        self._tolerance = tolerance
        self._seen: WeakKeyDictionary[Episode, _Predictions] = WeakKeyDictionary()

    def __call__(
        self, episodes: Sequence[Episode], observations_BD: NDArray[np.float32], mask_BA: Mask
    ) -> Choices:
        """An action index for each episode."""
        stable_B = [self._is_stable(episode) for episode in episodes]
        reusing_B, plain_B = _first_legal(mask_BA, self._reuse), _first_legal(mask_BA, self._plain)
        return np.where(stable_B, reusing_B, plain_B)

    def _is_stable(self, episode: Episode) -> bool:
        if episode.extrapolated:
            return False
        here, seen = (episode.clean_CHW, episode.level), self._seen.get(episode)
        if seen is None and episode.history is not None:  # the warm-up's prediction, seen by nobody here
            seen = _Predictions(None, episode.history)
        self._seen[episode] = _Predictions(seen.last if seen else None, here)
        if seen is None or seen.before is None:
            return False
        (first_CHW, first_level), (second_CHW, second_level) = seen.before, seen.last
        reach = step_ratio(first_level, second_level, episode.level)
        foreseen_CHW = second_CHW + reach * (second_CHW - first_CHW)
        error = torch.linalg.vector_norm(episode.clean_CHW - foreseen_CHW)
        return bool(error <= self._tolerance * torch.linalg.vector_norm(episode.clean_CHW))


def _first_legal(mask_BA: Mask, preference: Sequence[int]) -> Choices:
    """The first action of `preference` that is legal, for each episode."""
    ordered_BK = mask_BA[:, preference]
    assert ordered_BK.any(1).all(), "the engine left no action of this baseline legal"
    choices_B: Choices = np.asarray(preference, dtype=np.int64)[ordered_BK.argmax(1)]
    return choices_B
