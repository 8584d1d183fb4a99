"""RLlib's PPO as we run it: one `PPOConfig` made of one `RunConfig`, and what other algorithms share with it.

Always true here: samples are complete episodes and none is ever dropped for being late; an iteration is
one round of sampling, however short the episodes have become; a dead env runner is replaced.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TypeVar

import gymnasium
import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from actors.env_runner import DiffusionEnvRunner
from actors.orders import RunnerSettings
from learner.branches import CompareBranches
from learner.config import PPOSettings, RunConfig
from learner.gradients import FiniteGradients
from learner.module import PolicyModule
from rewards_service.pool_config import node_label

Config = TypeVar("Config", bound=AlgorithmConfig)


class OneRoundPPOConfig(PPOConfig):
    """PPO whose iteration is one `sample` call on every env runner.

    RLlib samples again until a number of *steps* is reached; ours are episodes of unknown length, whose
    number (`ppo.episodes_per_iteration`) the env runners know.
    """

    @property
    def total_train_batch_size(self) -> int:
        """The number of steps after which RLlib stops sampling."""
        return 1


class PPOLearner(FiniteGradients, PPOTorchLearner):
    """RLlib's, which lets gradients that are not finite pass."""


class BranchingPPOLearner(PPOLearner):
    """PPO whose forked episodes are compared with their twins."""

    def build(self) -> None:
        """With the comparison after the advantages have been estimated."""
        super().build()
        self._learner_connector.append(CompareBranches())


def ppo_config(config: RunConfig, settings: RunnerSettings) -> PPOConfig:
    """RLlib's configuration of a PPO run whose env runners are made from `settings`."""
    ppo = config.ppo
    learner_class = BranchingPPOLearner if config.algorithm.branch_share > 0.0 else PPOLearner
    shared = shared_config(OneRoundPPOConfig(), PolicyModule, config, settings)
    return (
        shared.env_runners(batch_mode="complete_episodes")
        .learners(learner_class=learner_class)
        .training(
            train_batch_size_per_learner=ppo.minibatch_size,
            minibatch_size=ppo.minibatch_size,
            num_epochs=ppo.num_epochs,
            lambda_=ppo.lambda_,
            clip_param=ppo.clip_param,
            vf_clip_param=ppo.value_clip,
            use_kl_loss=False,
        )
    )


def shared_config(
    base: Config, module_class: type[PolicyModule], config: RunConfig, settings: RunnerSettings
) -> Config:
    """`base` with all that does not depend on the algorithm."""
    ppo, resources, observer = config.ppo, config.resources, settings.observer
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observer.dim,), np.float32)
    module = RLModuleSpec(
        module_class=module_class,
        model_config={
            "observation": asdict(observer.config),
            "sizes": asdict(observer.sizes),
            "actions": list(observer.actions),
            "hidden": list(ppo.hidden),
            "initial_logits": [
                ppo.continue_logit if name == "continue" else 0.0 for name in config.engine.actions
            ],
            "critic_on_env_runners": settings.trajectories is not None,
        },
    )
    complete: Config = (
        base.environment(
            observation_space=observation_space,
            action_space=gymnasium.spaces.Discrete(observer.num_actions),
            env_config={"settings": settings},
        )
        .env_runners(
            env_runner_cls=DiffusionEnvRunner,
            num_env_runners=resources.num_env_runners,
            num_envs_per_env_runner=resources.slots,
            num_cpus_per_env_runner=resources.cpus_per_env_runner,
            num_gpus_per_env_runner=resources.gpus_per_env_runner,
            custom_resources_per_env_runner=node_label(resources.denoiser_resource),
            sample_timeout_s=None,
        )
        .learners(num_learners=0)
        .rl_module(rl_module_spec=module)
        .fault_tolerance(
            restart_failed_env_runners=True,
            max_num_env_runner_restarts=100,
            delay_between_env_runner_restarts_s=1.0,
        )
        .training(
            lr=ppo.lr,
            gamma=config.reward.gamma_d,
            vf_loss_coeff=ppo.value_coeff,
            entropy_coeff=entropy_schedule(ppo),
            grad_clip=ppo.grad_clip,
            grad_clip_by="global_norm",
        )
        .framework(torch_skip_nan_gradients=True)
        .debugging(seed=config.seed, log_level="ERROR")
        .reporting(min_time_s_per_iteration=0, metrics_num_episodes_for_smoothing=ppo.episodes_per_iteration)
    )
    return complete


def entropy_schedule(ppo: PPOSettings) -> list[tuple[int, float]]:
    """RLlib's piecewise linear schedule, over iterations; held to where it decays, it is a step."""
    end = max(round(ppo.entropy_decay * ppo.iterations), 1)
    held = min(round(ppo.entropy_hold * ppo.iterations), end - 1)
    points = [(0, ppo.entropy_start), (end, ppo.entropy_end)]
    return [points[0], (held, ppo.entropy_start), points[1]] if held > 0 else points


def learning_rate(ppo: PPOSettings, iteration: int) -> float:
    """Adam's step size of an iteration: linear, from the first one's to the last one's."""
    done = min(iteration / max(ppo.iterations - 1, 1), 1.0)
    return ppo.lr * (1.0 + done * (ppo.lr_end_share - 1.0))


def set_schedules(algorithm: Algorithm, ppo: PPOSettings, iteration: int) -> None:
    """Move entropy bonus and step size to an iteration, before each of them.

    Left alone, RLlib moves them by sampled steps, whose number is not known beforehand, and begins anew
    after a restore.
    """
    lr = learning_rate(ppo, iteration)

    def move(learner: Learner) -> None:
        learner.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID].update(timestep=iteration)
        for _, optimizer in learner.get_optimizers_for_module(DEFAULT_MODULE_ID):
            for group in optimizer.param_groups:
                group["lr"] = lr

    algorithm.learner_group.foreach_learner(move)
