"""Which algorithm trains the policy, and the options that only some of them have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from actors.errors import UserError

AlgorithmName = Literal["ppo", "appo", "reinforce"]


@dataclass(frozen=True)
class AlgorithmSettings:
    """The learning algorithm; docs/learner.md has the formulas. What all share is in `ppo`.

    name: "ppo", proximal policy optimisation (Schulman et al. 2017); "appo", the same without waiting for
    each other, with V-trace (Espeholt et al. 2018) and a target policy (IMPACT, Luo et al. 2020);
    "reinforce", policy gradient on the return with a baseline for each prompt and no critic (AdaDiff,
    Zhang et al. 2023; RLOO, Ahmadian et al. 2024). episodes_per_request: how often each prompt and seed
    is run in a row, to be compared with each other. branch_share: share of the episodes that are given a
    fork, where one decision is taken twice and the two outcomes are compared (B2-DiffuRL, Hu et al.
    2025). max_skipped_updates: so many minibatches in a row with gradients that are not finite, each of
    them skipped, end the run.
    """

    name: AlgorithmName = "ppo"
    episodes_per_request: int = 1
    branch_share: float = 0.0
    max_skipped_updates: int = 20

    def validate(self, *, num_env_runners: int, episodes_per_iteration: int) -> None:
        """Raise UserError for the first value that cannot work with so many env runners and episodes."""
        names = get_args(AlgorithmName)
        if self.name not in names:
            raise UserError(f"algorithm.name={self.name!r}: give one of {', '.join(names)}")
        for option in ("episodes_per_request", "max_skipped_updates"):
            if getattr(self, option) < 1:
                raise UserError(f"algorithm.{option}={getattr(self, option)}: give an integer >= 1")
        if self.episodes_per_request > episodes_per_iteration:
            raise UserError(
                f"algorithm.episodes_per_request={self.episodes_per_request}: give at most "
                f"ppo.episodes_per_iteration={episodes_per_iteration}"
            )
        if not 0.0 <= self.branch_share <= 1.0:
            raise UserError(f"algorithm.branch_share={self.branch_share}: give a number from 0 to 1")
        if self.name == "appo" and self.branch_share > 0.0:
            raise UserError(
                f"algorithm.branch_share={self.branch_share}: give 0 with algorithm.name=appo, whose V-trace "
                "knows whole episodes only"
            )
        if self.name == "appo" and num_env_runners < 1:
            raise UserError(
                f"algorithm.name=appo: give at least one env runner of its own "
                f"(resources.num_env_runners={num_env_runners})"
            )
