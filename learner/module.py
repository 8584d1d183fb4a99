"""The policy as RLlib's learner sees it: our two torch networks behind the RLModule interface.

Always true here: the policy network gets the policy part of the flat observation and the action mask,
the value network may see the critic-only part too (asymmetric critic); illegal actions have zero
probability; the normalisation of inputs is set once, before the first update, and never learned.
"""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule

from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.policy import PolicyNetwork, ValueNetwork


class PolicyModule(TorchRLModule, ValueFunctionAPI, InferenceOnlyAPI):
    """Actor and critic over a flat observation.

    `model_config`: observation (ObservationConfig's fields), sizes (ObservationSizes' fields),
    actions (their names), hidden, initial_logits (what every action's logit starts near), and perhaps
    critic_on_env_runners (whether these get the value network too; only stored trajectories need it there).
    """

    def setup(self) -> None:
        """Build both networks; env runners keep what `get_non_inference_attributes` does not name."""
        options = self.model_config
        self.observer = Observer(
            ObservationConfig(**options["observation"]),
            ObservationSizes(**options["sizes"]),
            options["actions"],
        )
        observer, hidden = self.observer, tuple(options["hidden"])
        self.policy = PolicyNetwork(observer.policy_dim, observer.num_actions, hidden)
        self.policy.set_initial_logits(options["initial_logits"])
        self.value = ValueNetwork(observer.policy_dim + observer.critic_dim, hidden)

    def get_non_inference_attributes(self) -> list[str]:
        """What env runners do without."""
        return [] if self.model_config.get("critic_on_env_runners", False) else ["value"]

    def set_state(self, state: dict[str, Any]) -> None:
        """Take weights; a critic that the sender did without stays as it is."""
        critic = {name: values for name, values in self.state_dict().items() if name.startswith("value.")}
        super().set_state({**critic, **state})

    def set_normalisation(self, mean_D: torch.Tensor, std_D: torch.Tensor) -> None:
        """Fix the input normalisation; both vectors are over the critic's whole input."""
        for network, width in ((self.policy, self.observer.policy_dim), (self.value, len(mean_D))):
            network.obs_mean.copy_(mean_D[:width])
            network.obs_std.copy_(std_D[:width])

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        policy_BD, _, mask_BA = self.observer.split(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: self.policy(policy_BD, mask_BA)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        """Values [B] of a batch's observations."""
        _, critic_BD, _ = self.observer.split(batch[Columns.OBS])
        values_B: torch.Tensor = self.value(critic_BD)
        return values_B
