"""BC and MARWIL on RLlib's offline API: one algorithm made of one `OfflineConfig`.

Always true here: RLlib reads and updates; the network is ours, and its input normalisation is that of the
run that gathered the episodes. Values are of whole returns (lambda 1), so that what is read once may be
kept: no bootstrapped value of an untrained critic is in it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import asdict

import gymnasium
import numpy as np
import ray.data
import torch
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import LEARNER_RESULTS

from actors.policy import PolicyNetwork
from actors.trajectory_origin import Origin
from learner.module import PolicyModule
from learner.offline_config import OfflineConfig
from learner.offline_data import Survey
from learner.offline_reader import FILES_AT_ONCE, HELD_OUT, EpisodePreLearner

_ROWS = {
    "policy_loss": "policy_loss",
    "vf_loss": "value_loss",
    "vf_explained_variance": "explained_variance",
    "gradients_default_optimizer_global_norm": "gradient_norm",
}
#: RLlib's own numbers, 100 and 1e-8, are for returns of hundreds: they would hold the weights at 1 here.
_ADVANTAGE_NORM_START, _ADVANTAGE_NORM_RATE = 1.0, 0.01
_SHUFFLED_MINIBATCHES = 16


def algorithm_config(config: OfflineConfig, origin: Origin, survey: Survey) -> MARWILConfig:
    """RLlib's configuration of one offline training."""
    observer = origin.observer()
    module = RLModuleSpec(
        module_class=PolicyModule,
        model_config={
            "observation": asdict(observer.config),
            "sizes": asdict(observer.sizes),
            "actions": list(observer.actions),
            "hidden": list(config.hidden),
            "initial_logits": [0.0] * observer.num_actions,
        },
    )
    made: MARWILConfig = BCConfig() if config.algorithm == "bc" else MARWILConfig()
    (
        made.environment(
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (observer.dim,), np.float32),
            action_space=gymnasium.spaces.Discrete(observer.num_actions),
            env_config={HELD_OUT: config.held_out},
        )
        .env_runners(num_env_runners=0)
        .learners(num_learners=0)
        .rl_module(rl_module_spec=module)
        .offline_data(
            input_=list(survey.files),
            input_read_method="from_items",
            input_read_episodes=True,
            input_read_batch_size=FILES_AT_ONCE,
            prelearner_class=EpisodePreLearner,
            map_batches_kwargs={"concurrency": 1, "num_cpus": 1},
            iter_batches_kwargs={
                "prefetch_batches": 1,
                "local_shuffle_buffer_size": _SHUFFLED_MINIBATCHES * config.minibatch_size,
                "local_shuffle_seed": config.seed,
            },
            materialize_data=False,
            materialize_mapped_data=True,
            dataset_num_iters_per_learner=config.updates_per_iteration,
        )
        .training(
            lr=config.lr,
            gamma=origin.gamma,
            train_batch_size_per_learner=config.minibatch_size,
            grad_clip=config.grad_clip,
            grad_clip_by="global_norm",
        )
        .debugging(seed=config.seed, log_level="ERROR")
        .reporting(min_time_s_per_iteration=0)
    )
    if config.algorithm == "marwil":
        made.training(
            beta=min(config.marwil.beta, 1.0),
            vf_coeff=config.marwil.value_coeff,
            moving_average_sqd_adv_norm_start=_ADVANTAGE_NORM_START,
            moving_average_sqd_adv_norm_update_rate=_ADVANTAGE_NORM_RATE,
        )
    return made


def rllib_updates(
    config: OfflineConfig, origin: Origin, survey: Survey
) -> Iterator[tuple[dict[str, float], PolicyNetwork]]:
    """One row of numbers and the policy so far, after each iteration. Needs a Ray session."""
    mean_D, std_D = torch.tensor(origin.mean), torch.tensor(origin.std)
    with _quiet_data():
        algorithm = algorithm_config(config, origin, survey).build_algo()
        learner = algorithm.learner_group._learner
        try:
            module: PolicyModule = learner.module[DEFAULT_MODULE_ID].unwrapped()
            module.set_normalisation(mean_D, std_D)
            for _ in range(config.iterations):
                found = algorithm.train()[LEARNER_RESULTS][DEFAULT_MODULE_ID]
                row = {ours: float(found[theirs]) for theirs, ours in _ROWS.items() if theirs in found}
                if survey.held_out is not None and config.algorithm == "marwil":
                    row["held_out_weighted_nll"] = survey.held_out.weighted_nll(
                        module.policy, module.value, module.observer, config.marwil.beta
                    )
                yield row, module.policy
        finally:
            learner.iterator = None  # it reports to Ray when it goes, which must be there still
            algorithm.stop()


@contextlib.contextmanager
def _quiet_data() -> Iterator[None]:
    """Ray Data without progress bars and reports; files are read in order, so that a seed repeats."""
    context = ray.data.DataContext.get_current()
    before = (context.enable_progress_bars, context.execution_options.preserve_order)
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.execution_options.preserve_order = before
        logger.setLevel(level)
