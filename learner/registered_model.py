"""A policy as MLflow's pyfunc serves it: observations in, probabilities of the actions out.

Always true here: MLflow stores this file and the policy's folder, and runs the file when the model is
loaded. Nothing is pickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np
import torch
from numpy.typing import NDArray

from actors.policy import load_policy

ARTIFACT = "policy"


class RegisteredPolicy(mlflow.pyfunc.PythonModel):
    """The policy as a pyfunc model: float32 rows [policy part | mask] in, action probabilities out."""

    def load_context(self, context: Any) -> None:
        """Load the network from the artifact folder."""
        self._network, _ = load_policy(Path(context.artifacts[ARTIFACT]))

    def predict(
        self,
        context: Any,
        model_input: np.ndarray,  # type: ignore[type-arg]  # MLflow reads this hint, and knows no other
        params: dict[str, Any] | None = None,
    ) -> NDArray[np.float32]:
        """Action probabilities [B, A] of B observations."""
        actions = self._network.num_actions
        rows_BD = torch.as_tensor(np.asarray(model_input, dtype=np.float32))
        with torch.inference_mode():
            logits_BA = self._network(rows_BD[:, :-actions], rows_BD[:, -actions:] > 0.5)
            return torch.softmax(logits_BA, dim=-1).numpy()


mlflow.models.set_model(RegisteredPolicy())
