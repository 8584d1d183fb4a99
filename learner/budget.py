"""Budget control: the price of compute follows a wish, `reward.target_nfe` or `reward.quality_floor`.

Always true here: the price moves once an iteration that brought episodes, by their mean alone; a wish that is
not being approached is said in the iteration's row; all that decides the next price is in `state`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from actors.engine import EngineConfig
from actors.errors import UserError
from rewards_service.arithmetic import RewardConfig, dual_variable

#: What of a row is compared with each wish.
_OBSERVED = {"target_nfe": "nfe", "quality_floor": "quality_over_reference"}


def check_target(reward: RewardConfig, engine: EngineConfig) -> None:
    """Raise UserError for a mean NFE that no episode can have."""
    lowest, highest = engine.warmup_steps + 1, engine.max_nfe
    if reward.target_nfe is not None and not lowest <= reward.target_nfe <= highest:
        raise UserError(
            f"reward.target_nfe={reward.target_nfe:g}: give a number from {lowest} (engine.warmup_steps and "
            f"one more) to {highest} (engine.max_nfe)"
        )


class Budget:
    """The controller of a run's price; where the reward has a fixed price, it does nothing."""

    def __init__(self, reward: RewardConfig) -> None:
        self.option = next((name for name in _OBSERVED if getattr(reward, name) is not None), None)
        self._price = dual_variable(reward)
        assert (self.option is None) == (self._price is None)

    def steer(self, row: dict[str, Any], reward: RewardConfig) -> RewardConfig:
        """The reward of the next iteration, by what this one's `row` shows; writes "budget" into the row.

        target: as wished; mean: smoothed over iterations; warning: where the target is out of reach.
        """
        if self._price is None or self.option is None or not row["episodes"]:
            return reward
        c_nfe = self._price.update(row[_OBSERVED[self.option]])
        row["budget"] = {"target": self._price.target, "mean": self._price.mean}
        if self._price.out_of_reach:
            row["budget"]["warning"] = (
                f"reward.{self.option}={self._price.target:g} seems out of reach: the mean is "
                f"{self._price.mean:.3g} and comes no nearer, at a price of {c_nfe:.2g} an NFE"
            )
        return replace(reward, c_nfe=c_nfe)

    def state(self) -> dict[str, Any] | None:
        """What a resumed run goes on from."""
        return None if self._price is None else self._price.state()

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take what `state` gave; nothing, where the run that gave it had no wish."""
        if self._price is not None and state is not None:
            self._price.restore(state)
