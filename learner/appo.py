"""APPO: env runners and learner do not wait for each other.

Always true here: an env runner asks for the newest weights and orders at the start of every round, so none
acts on weights that are older than its round; it always has a round under way or asked for; an update takes
whole rounds, and happens in the driver, where its errors are seen. Which requests a runner takes follows
from the seed, its index and its own count of rounds, which a checkpoint keeps.

RLlib's loss: V-trace (Espeholt et al. 2018, arXiv 1802.01561) and a clipped surrogate against a target policy
(IMPACT, Luo et al. 2020, arXiv 1912.00167).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray
import torch
from ray.rllib.algorithms.appo import APPO, APPOConfig
from ray.rllib.algorithms.appo.torch.appo_torch_learner import APPOTorchLearner
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import TARGET_NETWORK_ACTION_DIST_INPUTS, TargetNetworkAPI
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    TIMERS,
    WEIGHTS_SEQ_NO,
)

from actors.orders import ORDERS, ROUNDS, Orders, RunnerSettings
from learner.config import RunConfig
from learner.gradients import FiniteGradients
from learner.module import PolicyModule
from learner.ppo import shared_config

_ROUNDS_UNDER_WAY = 2
"""Of each env runner: one runs, the next waits in its queue, so that it never waits for the driver."""
_WAIT_S = 0.02
_ROW = 256
"""Decisions of one row of V-trace; where a row ends within an episode, the critic stands for the rest."""


class TargetPolicyModule(PolicyModule, TargetNetworkAPI):
    """The policy with a copy of itself from before the update under way."""

    def make_target_networks(self) -> None:
        """The copy."""
        self.old_policy = make_target_network(self.policy)

    def get_target_network_pairs(self) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
        """The policy and its copy."""
        return [(self.policy, self.old_policy)]

    def forward_target(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The copy's logits."""
        policy_BD, _, mask_BA = self.observer.split(batch["obs"])
        return {TARGET_NETWORK_ACTION_DIST_INPUTS: self.old_policy(policy_BD, mask_BA)}

    def get_non_inference_attributes(self) -> list[str]:
        """What acting does not need."""
        return [*super().get_non_inference_attributes(), "old_policy"]

    def set_normalisation(self, mean_D: torch.Tensor, std_D: torch.Tensor) -> None:
        """Of the copy too."""
        super().set_normalisation(mean_D, std_D)
        if hasattr(self, "old_policy"):
            self.old_policy.load_state_dict(self.policy.state_dict())


class APPOLearner(FiniteGradients, APPOTorchLearner):
    """RLlib's, in the caller's thread: in its own, an error would leave the driver waiting for ever."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """One update, done when this returns."""
        return Learner.update(self, *args, **kwargs)

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Without RLlib's entropy schedule by sampled steps: `set_schedules` moves it by iterations."""
        Learner.before_gradient_based_update(self, timesteps=timesteps)


class AsynchronousAPPO(APPO):
    """An iteration is one update, as soon as `episodes_per_update` episodes have arrived from anywhere."""

    def setup(self, config: APPOConfig) -> None:
        """With nothing sampled yet."""
        super().setup(config)
        settings: RunnerSettings = config.env_config["settings"]
        self.episodes_per_update = settings.episodes_per_iteration
        self.rounds = [0] * config.num_env_runners
        self._arrived: list[tuple[list[SingleAgentEpisode], Any]] = []

    def publish(self, orders: Orders) -> None:
        """Lay out orders and the learner's weights for the env runners to take before their next rounds."""
        orders = replace(orders, rounds=tuple(self.rounds))
        state = self._weights()
        self.env_runner.set_state({**state, ORDERS: orders})
        state[COMPONENT_RL_MODULE] = ray.put(state[COMPONENT_RL_MODULE])
        assert self._env_runner_state_server is not None
        ray.get(self._env_runner_state_server.push.remote({**state, ORDERS: ray.put(orders)}))

    def training_step(self) -> None:
        """Gather, update. Nothing where no env runner lives; what has arrived waits for the next call."""
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            if not self._gather():
                return
        arrived, self._arrived = self._arrived, []
        self.metrics.aggregate([metrics for _, metrics in arrived], key=ENV_RUNNER_RESULTS)
        trained = (LEARNER_RESULTS, ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME)
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(
                episodes=[episode for episodes, _ in arrived for episode in episodes],
                timesteps={NUM_ENV_STEPS_TRAINED_LIFETIME: self.metrics.peek(trained, default=0)},
                num_epochs=self.config.num_epochs,
            )
            self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self.env_runner.set_state(self._weights())

    def _gather(self) -> bool:
        """Wait for enough episodes, keeping all env runners busy; False if none of them lives."""
        while sum(len(episodes) for episodes, _ in self._arrived) < self.episodes_per_update:
            if self.env_runner_group.num_healthy_remote_workers() == 0:
                return False
            ready = self.env_runner_group.foreach_env_runner_async_fetch_ready(
                func="sample_get_state_and_metrics",
                tag="sample",
                timeout_seconds=_WAIT_S,
                return_actor_ids=True,
            )
            for index, (episodes, state, metrics) in ready:
                self._arrived.append((episodes, metrics))
                self.rounds[index - 1] = max(self.rounds[index - 1], state[ROUNDS])
        return True

    def _weights(self) -> dict[str, Any]:
        state = self.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER]
        return {name: state[name] for name in (COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO)}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's, and how many rounds each env runner has done."""
        return {**super().get_state(*args, **kwargs), ROUNDS: list(self.rounds)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there; an env runner that is new begins where the others are."""
        super().set_state(state)
        done, last = state.get(ROUNDS, []), max(state.get(ROUNDS, []), default=0)
        self.rounds = [*done, *[last] * len(self.rounds)][: len(self.rounds)]


def appo_config(config: RunConfig, settings: RunnerSettings) -> APPOConfig:
    """RLlib's configuration of an APPO run whose env runners are made from `settings`.

    An update is `ppo.num_epochs` gradient steps over all of its decisions, as V-trace needs them in order.
    """
    ppo = config.ppo
    shared = shared_config(APPOConfig(algo_class=AsynchronousAPPO), TargetPolicyModule, config, settings)
    return (
        shared.env_runners(
            rollout_fragment_length=_ROW,
            max_requests_in_flight_per_env_runner=_ROUNDS_UNDER_WAY,
            use_env_runner_state_server=True,
        )
        .learners(learner_class=APPOLearner)
        .training(
            train_batch_size_per_learner=1,
            num_epochs=ppo.num_epochs,
            clip_param=ppo.clip_param,
            use_kl_loss=False,
            use_circular_buffer=False,
            # The target policy is renewed after each update: RLlib multiplies these to a number of decisions.
            target_network_update_freq=1,
            circular_buffer_num_batches=1,
            circular_buffer_iterations_per_batch=1,
        )
    )
