"""Gradients that are not finite: the update is skipped and counted.

Always true here: no optimiser ever sees a gradient that is not finite. The check is one number, the global
norm, a fiftieth of a gradient step; the norm that RLlib clips by is no use, as it has 0 in place of NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner

from learner.guards import TrainingFailure

SKIPPED = "skipped_updates"
SKIPPED_IN_A_ROW = "skipped_in_a_row"


class FiniteGradients(TorchLearner):
    """Before a learner class among the bases: minibatches with such a gradient change nothing.

    Reports SKIPPED, how many in this update, and SKIPPED_IN_A_ROW, the longest row of them up to its end.
    RLlib has a check of its own, which looks at every number; it costs a third of the update.
    """

    def build(self) -> None:
        """With nothing skipped so far."""
        super().build()
        self._skipped = self._in_a_row = self._longest = 0

    def apply_gradients(self, gradients_dict: dict[Any, Any]) -> None:
        """A step of the optimiser, if the norm is finite."""
        norm = torch.nn.utils.get_total_norm([each for each in gradients_dict.values() if each is not None])
        if bool(torch.isfinite(norm)):
            self._in_a_row = 0
            super().apply_gradients(gradients_dict)
            return
        self._skipped += 1
        self._in_a_row += 1
        self._longest = max(self._longest, self._in_a_row)

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Report."""
        super().after_gradient_based_update(timesteps=timesteps)
        for name, value in ((SKIPPED, self._skipped), (SKIPPED_IN_A_ROW, self._longest)):
            self.metrics.log_value((DEFAULT_MODULE_ID, name), value, window=1)
        self._skipped, self._longest = 0, self._in_a_row


def check_skipped(row: Mapping[str, Any], most: int) -> None:
    """Raise TrainingFailure where a row of progress.jsonl tells of `most` updates skipped in a row."""
    if row.get(SKIPPED_IN_A_ROW, 0) >= most:
        raise TrainingFailure(
            f"iteration {row['iteration']}: the gradients of {row[SKIPPED_IN_A_ROW]} updates in a row were "
            f"not finite; none of them was applied (algorithm.max_skipped_updates={most})",
            "not_finite",
        )
