"""How RLlib reads our files: whole episodes, of the prompts that are learnt from.

Always true here: a few files are in memory at a time, not all; of an episode RLlib gets all or nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.offline.offline_prelearner import OfflinePreLearner
from ray.rllib.utils import flatten_dict

from actors import trajectory_store
from learner.offline_data import learnt_rows

#: Files that RLlib reads, and makes one block of, at a time.
FILES_AT_ONCE = 4
HELD_OUT = "held_out"
"""The held-out share, in RLlib's `env_config`."""
_COLUMNS = ("eps_id", "prompt", "obs", "actions", "rewards", "terminateds")


def rllib_episodes(rows: pyarrow.Table) -> Iterator[SingleAgentEpisode]:
    """Whole episodes as RLlib's connectors take them."""
    observations_ND = trajectory_store.vectors(rows, "obs")
    actions_N, rewards_N = rows["actions"].to_numpy(), rows["rewards"].to_numpy()
    start = 0
    for length in trajectory_store.episode_lengths(rows):
        inside = slice(start, start + int(length))
        seen = observations_ND[inside]
        # A terminated episode's last observation is never valued; RLlib wants one more than actions.
        yield SingleAgentEpisode(
            id_=rows["eps_id"][start].as_py(),
            observations=[*seen, seen[-1]],
            actions=list(actions_N[inside]),
            rewards=list(rewards_N[inside]),
            terminated=True,
            len_lookback_buffer=0,
        ).to_numpy()
        start += int(length)


class EpisodePreLearner(OfflinePreLearner):
    """RLlib's reader for files of ours: rows name files, what comes out are decisions to learn from.

    RLlib's own makes an episode of every single row; such have no return for MARWIL to weigh by.
    """

    def __init__(self, **kwargs: Any) -> None:
        logging.getLogger("ray._common.deprecation").setLevel(logging.ERROR)  # of calls of RLlib's own
        super().__init__(**kwargs)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The decisions of all whole episodes in `batch["item"]`, a few files."""
        share = float(self.config.env_config[HELD_OUT])
        episodes = [
            episode
            for file in batch["item"]
            for rows in trajectory_store.stream_file(Path(str(file)), _COLUMNS)
            for episode in rllib_episodes(learnt_rows(rows, share))
        ]
        assert episodes, "a file without anything to learn from; the survey leaves such out"
        learnt = self._learner_connector(
            rl_module=self._module, batch={}, episodes=episodes, shared_data={}, metrics=None
        )
        for columns in learnt.values():
            columns.pop(Columns.NEXT_OBS, None)  # nobody looks at them, and they double the data
        flat: dict[str, Any] = flatten_dict(learnt)
        return flat
