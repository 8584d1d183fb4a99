"""The learning algorithms by name, and what a run does with any of them.

Always true here: whatever the algorithm, `train()` of what is built is one iteration, and its local env
runner holds the newest weights afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from actors.orders import Orders, RunnerSettings
from learner.algorithm_settings import AlgorithmName
from learner.appo import AsynchronousAPPO, appo_config
from learner.config import RunConfig
from learner.ppo import ppo_config
from learner.reinforce import reinforce_config

_CONFIGS: dict[AlgorithmName, Callable[[RunConfig, RunnerSettings], AlgorithmConfig]] = {
    "ppo": ppo_config,
    "appo": appo_config,
    "reinforce": reinforce_config,
}


def algorithm_config(config: RunConfig, settings: RunnerSettings) -> AlgorithmConfig:
    """RLlib's configuration; `build_algo()` starts its env runners."""
    return _CONFIGS[config.algorithm.name](config, settings)


def give_orders(algorithm: Algorithm, orders: Orders) -> None:
    """Tell all env runners, before each iteration; asynchronous ones learn it when they begin a round."""
    if isinstance(algorithm, AsynchronousAPPO):
        algorithm.publish(orders)
    else:
        algorithm.env_runner_group.foreach_env_runner(lambda runner: runner.take_orders(orders))


def next_round(algorithm: Algorithm, iteration: int, runner: int) -> int:
    """Which round the env runner with this index does next, after so many iterations."""
    return algorithm.rounds[runner - 1] if isinstance(algorithm, AsynchronousAPPO) else iteration
