"""REINFORCE with a baseline for each prompt: policy gradient on the return, without a critic.

Always true here: an episode is compared with others only, never with itself or its own twin, so the baseline
does not bias the gradient; one update is one gradient step over all decisions, so that it is of the policy
that acted. The value network is never trained and never asked.

AdaDiff (Zhang et al. 2023, arXiv 2311.14768) learns how many steps a prompt gets so; comparing with the other
samples of the same prompt is RLOO (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.learner import GeneralAdvantageEstimation
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.evaluation.postprocessing import Postprocessing

from actors.branching import discounted
from actors.env_runner import COMPARISON, PROMPT
from actors.orders import RunnerSettings
from learner.branches import SMALLEST_SCALE, compared, spans
from learner.config import RunConfig
from learner.gradients import FiniteGradients
from learner.module import PolicyModule
from learner.ppo import OneRoundPPOConfig, shared_config


def leave_one_out(returns_E: Sequence[float], prompts_E: Sequence[str]) -> NDArray[np.float64]:
    """[E]: each return less the mean of the others of its prompt; of all others where it has none."""
    returns = np.asarray(returns_E, dtype=np.float64)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts_E):
        groups[prompt].append(index)
    everybody = range(len(returns))
    advantages_E = np.zeros(len(returns))
    for members in groups.values():
        for index in members:
            among = members if len(members) > 1 else everybody
            others = [returns[other] for other in among if other != index]
            advantages_E[index] = returns[index] - np.mean(others) if others else 0.0
    return advantages_E


class ReturnsOverPrompt(ConnectorV2):
    """Gives every decision its episode's advantage, all divided by the standard deviation over episodes.

    A twin is nobody's companion, as its trunk's prefix is its own: it has its trunk's baseline.
    """

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def __call__(
        self, *, batch: dict[str, Any], episodes: list[SingleAgentEpisode], **kwargs: Any
    ) -> dict[str, Any]:
        """The batch with ADVANTAGES."""
        rows = batch[DEFAULT_MODULE_ID]
        rewards_N = np.asarray(rows[Columns.REWARDS].cpu(), dtype=np.float64)
        trunks = [span for span in spans(episodes) if not _is_twin(span[0])]
        returns_E = [discounted(rewards_N[start:stop].tolist(), self.gamma) for _, start, stop in trunks]
        baselined_E = leave_one_out(returns_E, [episode.custom_data[PROMPT] for episode, _, _ in trunks])
        scale = max(SMALLEST_SCALE, float(baselined_E.std()))
        advantages_N = np.zeros(len(rewards_N), np.float32)
        remaining = iter(baselined_E.tolist())
        advantage = 0.0
        for episode, start, stop in spans(episodes):
            if _is_twin(episode):  # right after its trunk, whose advantage is still at hand
                side = episode.custom_data[COMPARISON]
                advantages_N[start:stop] = (advantage + self.gamma**side.at * side.gain) / scale
            else:
                advantage = next(remaining)
                advantages_N[start:stop] = advantage / scale
        changed_N = compared(advantages_N, episodes, self.gamma, scale)
        rows[Postprocessing.ADVANTAGES] = torch.from_numpy(changed_N).to(rows[Columns.REWARDS].device)
        return batch


def _is_twin(episode: SingleAgentEpisode) -> bool:
    side = episode.custom_data.get(COMPARISON)
    return side is not None and side.is_twin


class ReinforceLearner(FiniteGradients, PPOTorchLearner):
    """PPO's learner with another advantage and, in place of its loss, -A log pi less the entropy bonus."""

    def build(self) -> None:
        """With returns in place of RLlib's advantage estimation, which asks the critic."""
        super().build()
        self._learner_connector.remove(GeneralAdvantageEstimation)
        self._learner_connector.append(ReturnsOverPrompt(self.config.gamma))

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> torch.Tensor:
        """Mean over the decisions that were taken."""
        distribution = self.module[module_id].unwrapped().get_train_action_dist_cls()
        actions = distribution.from_logits(fwd_out[Columns.ACTION_DIST_INPUTS])
        taken_N = batch[Columns.LOSS_MASK]
        policy_loss = -(batch[Postprocessing.ADVANTAGES] * actions.logp(batch[Columns.ACTIONS]))[
            taken_N
        ].mean()
        entropy = actions.entropy()[taken_N].mean()
        weight = self.entropy_coeff_schedulers_per_module[module_id].get_current_value()
        self.metrics.log_dict({POLICY_LOSS_KEY: policy_loss, ENTROPY_KEY: entropy}, key=module_id, window=1)
        loss: torch.Tensor = policy_loss - weight * entropy
        return loss


def reinforce_config(config: RunConfig, settings: RunnerSettings) -> OneRoundPPOConfig:
    """RLlib's configuration of a REINFORCE run whose env runners are made from `settings`."""
    shared = shared_config(OneRoundPPOConfig(), PolicyModule, config, settings)
    return (
        shared.env_runners(batch_mode="complete_episodes")
        .learners(learner_class=ReinforceLearner)
        .training(
            train_batch_size_per_learner=1,
            minibatch_size=None,
            num_epochs=1,
            use_critic=False,
            use_kl_loss=False,
        )
    )
