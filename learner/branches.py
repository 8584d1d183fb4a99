"""How branch comparisons enter an update: the advantages of forked episodes.

Always true here: an episode without a fork keeps its advantages; a pair's comparison, made where the episodes
were gathered (`actors.branching`), is in the units of the reward until it is divided by the same scale as all
other advantages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.evaluation.postprocessing import Postprocessing

from actors.branching import Comparison
from actors.env_runner import COMPARISON

SMALLEST_SCALE = 1e-4
"""RLlib's: advantages are never divided by less."""


def compared(
    advantages_N: NDArray[np.float32], episodes: Sequence[SingleAgentEpisode], gamma: float, scale: float
) -> NDArray[np.float32]:
    """The advantages of all rows with those of forked episodes as their comparison says.

    advantages_N: in units of `scale`, one row a step of each of the episodes, one after another; gamma:
    discount of what a decision is worth by its place in the episode, 1 where places count alike.
    """
    result_N = advantages_N.copy()
    for episode, start, stop in spans(episodes):
        side: Comparison | None = episode.custom_data.get(COMPARISON)
        if side is None:
            continue
        fork = start if side.is_twin else start + side.at  # a twin's episode begins with its fork
        result_N[fork] = gamma**side.at * side.share * side.gain / scale
        result_N[fork + 1 : stop] *= side.weight
    return result_N


def spans(episodes: Sequence[SingleAgentEpisode]) -> Iterator[tuple[SingleAgentEpisode, int, int]]:
    """Each episode with its first row of a batch, and the row after its last."""
    start = 0
    for episode in episodes:
        yield episode, start, start + len(episode)
        start += len(episode)


class CompareBranches(ConnectorV2):
    """After RLlib's advantage estimation: the comparisons, on the scale that it has divided by."""

    def __call__(
        self, *, rl_module: Any, batch: dict[str, Any], episodes: list[SingleAgentEpisode], **kwargs: Any
    ) -> dict[str, Any]:
        """The batch with its advantages changed."""
        rows = batch[DEFAULT_MODULE_ID]
        with torch.no_grad():
            values_N = rl_module[DEFAULT_MODULE_ID].compute_values(rows)
        raw_N = (rows[Postprocessing.VALUE_TARGETS] - values_N).cpu().numpy()
        advantages_N = rows[Postprocessing.ADVANTAGES]
        scale = max(SMALLEST_SCALE, float(raw_N.std()))
        changed_N = compared(advantages_N.cpu().numpy(), episodes, 1.0, scale)
        rows[Postprocessing.ADVANTAGES] = torch.from_numpy(changed_N).to(advantages_N.device)
        return batch
