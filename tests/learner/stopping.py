"""A decision process that is small, noisy, and solved exactly: which of many offers to take.

An offer is good or bad with probability 1/2, worth +1 or -1. Looking at it gives a number that is normal
with mean DRIFT or -DRIFT and standard deviation 1. `continue` looks at the same offer again, `restart` at a
new one, `stop` takes the one at hand; each look costs PRICE, and after LOOKS of them one has to take what
there is. Wald's sequential test with another offer in place of "reject": the log-likelihood ratio and the
number of looks left are all that matters, so the best policy follows by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.collector import CollectorTimes, Policy
from actors.contracts import EpisodeRequest, EpisodeResult
from actors.engine import EngineConfig
from actors.env_runner import DiffusionEnvRunner
from actors.ledger import Target
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.orders import Orders, RunnerSettings
from actors.policy import PolicyNetwork
from actors.trajectory import TrainingRequest, Trajectory
from learner.algorithms import algorithm_config, give_orders
from learner.config import RunConfig
from learner.ppo import set_schedules
from rewards_service.arithmetic import Components, RewardConfig

DRIFT, PRICE, LOOKS = 0.6, 0.03, 12
ACTIONS = ("continue", "stop", "restart")
CONTINUE, STOP, RESTART = range(3)
OBSERVER = Observer(ObservationConfig(critic_sees_quality=False), ObservationSizes(2, 1), ACTIONS)


@dataclass(frozen=True)
class Solution:
    """Of the dynamic programme on a grid of log-likelihood ratios, in float64.

    value: of an episode under the best policy; choice[n]: best action at each point of the grid with n looks
    left.
    """

    value: float
    grid: NDArray[np.float64]
    choice: NDArray[np.int64]


def solve(points: int = 4001, limit: float = 20.0, nodes: int = 401) -> Solution:
    """Backwards over the looks left; expectations by the trapezoidal rule."""
    grid = np.linspace(-limit, limit, points)
    noise = np.linspace(-8.0, 8.0, nodes)
    weights = np.exp(-(noise**2) / 2)
    weights /= weights.sum()

    def ahead(values: NDArray[np.float64], ratio: NDArray[np.float64]) -> NDArray[np.float64]:
        """Expected value after one more look at an offer of this ratio."""
        chance = 1.0 / (1.0 + np.exp(-ratio))
        after = [
            np.interp(ratio[:, None] + 2 * DRIFT * (sign * DRIFT + noise), grid, values) @ weights
            for sign in (1.0, -1.0)
        ]
        expected: NDArray[np.float64] = chance * after[0] + (1.0 - chance) * after[1]
        return expected

    stop = np.tanh(grid / 2)
    values, choices = stop, [np.full(points, STOP)]
    for _ in range(LOOKS - 1):
        go_on = ahead(values, grid) - PRICE
        again = np.full(points, ahead(values, np.zeros(1))[0] - PRICE)
        options = np.stack([go_on, stop, again])
        choices.append(options.argmax(axis=0))
        values = options.max(axis=0)
    return Solution(float(ahead(values, np.zeros(1))[0] - PRICE), grid, np.stack(choices))


class Offers:
    """B episodes side by side; all have had their first look."""

    def __init__(self, episodes: int, generator: np.random.Generator) -> None:
        self.generator = generator
        self.good_B = np.zeros(episodes, np.bool_)
        self.ratio_B = np.zeros(episodes)
        self.left_B = np.full(episodes, LOOKS)
        self._look(np.arange(episodes), fresh=np.ones(episodes, np.bool_))

    def act(self, rows_N: NDArray[np.int64], actions_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rewards [N]; an episode that stops must not act again."""
        looks_N = actions_N != STOP
        self._look(rows_N[looks_N], fresh=actions_N[looks_N] == RESTART)
        rewards_N: NDArray[np.float64] = np.where(looks_N, -PRICE, np.where(self.good_B[rows_N], 1.0, -1.0))
        return rewards_N

    def observe(self, rows_N: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Observations [N, D] and legal actions [N, 3] in `OBSERVER`'s layout; the rest is 0, unknown."""
        mask_NA = np.ones((len(rows_N), 3), np.bool_)
        mask_NA[self.left_B[rows_N] == 0, :] = [False, True, False]
        observations_ND = np.zeros((len(rows_N), OBSERVER.dim), np.float32)
        observations_ND[:, 0] = self.ratio_B[rows_N] / 2
        observations_ND[:, 1] = (self.left_B[rows_N] - LOOKS / 2) / (LOOKS / 4)
        observations_ND[:, -3:] = mask_NA
        return observations_ND, mask_NA

    def _look(self, rows_N: NDArray[np.int64], fresh: NDArray[np.bool_]) -> None:
        new_N = rows_N[fresh]
        self.good_B[new_N], self.ratio_B[new_N] = self.generator.random(len(new_N)) < 0.5, 0.0
        mean_N = np.where(self.good_B[rows_N], DRIFT, -DRIFT)
        self.ratio_B[rows_N] += 2 * DRIFT * self.generator.normal(mean_N)
        self.left_B[rows_N] -= 1


Decide = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.int64]]


def value_of(decide: Decide, episodes: int, seed: int) -> tuple[float, float]:
    """Mean return of fresh episodes under a policy, and its standard error."""
    offers = Offers(episodes, np.random.default_rng(seed))
    returns_B, running = np.full(episodes, -PRICE), np.arange(episodes)
    while len(running):
        actions = decide(*offers.observe(running))
        returns_B[running] += offers.act(running, actions)
        running = running[actions != STOP]
    return float(returns_B.mean()), float(returns_B.std() / episodes**0.5)


def best(solution: Solution) -> Decide:
    """The dynamic programme's policy."""

    def decide(observations_ND: NDArray[np.float32], _: NDArray[np.bool_]) -> NDArray[np.int64]:
        left_N = np.round(observations_ND[:, 1] * (LOOKS / 4) + LOOKS / 2).astype(np.int64)
        places_N = np.searchsorted(solution.grid, 2 * observations_ND[:, 0].astype(np.float64))
        actions_N: NDArray[np.int64] = solution.choice[left_N, places_N.clip(0, len(solution.grid) - 1)]
        return actions_N

    return decide


def greedy(network: PolicyNetwork) -> Decide:
    """A trained network's best actions."""

    def decide(observations_ND: NDArray[np.float32], mask_NA: NDArray[np.bool_]) -> NDArray[np.int64]:
        with torch.inference_mode():
            policy_ND, _, _ = OBSERVER.split(torch.from_numpy(observations_ND))
            actions_N: NDArray[np.int64] = network(policy_ND, torch.from_numpy(mask_NA)).argmax(dim=1).numpy()
        return actions_N

    return decide


class OfferCollector:
    """What `Collector` is to an env runner, without images."""

    def __init__(self) -> None:
        self.engine = SimpleNamespace(action_names=ACTIONS)
        self.times = CollectorTimes(wall=1.0)

    def collect(
        self,
        requests: Sequence[TrainingRequest],
        policy: Policy,
        reward: RewardConfig,
        *,
        greedy: bool = False,
    ) -> list[Trajectory]:
        """All requests at once, their noise by the first one's stream."""
        trajectories = [Trajectory(training) for training in requests]
        generator = np.random.default_rng(requests[0].stream)
        offers, running = Offers(len(requests), generator), np.arange(len(requests))
        while len(running):
            observations_ND, mask_NA = offers.observe(running)
            logits_NA = policy(observations_ND, mask_NA)
            log_probs_NA = torch.from_numpy(logits_NA).double().log_softmax(dim=1).numpy()
            cumulative_NA = np.exp(log_probs_NA).cumsum(axis=1)
            drawn_N1 = generator.random((len(running), 1)) * cumulative_NA[:, -1:]
            actions_N = (cumulative_NA <= drawn_N1).sum(axis=1)
            entropies_N = -(np.exp(log_probs_NA) * log_probs_NA).sum(axis=1, where=mask_NA)
            rewards_N = offers.act(running, actions_N)
            for row, index in enumerate(running):
                trajectory, action = trajectories[int(index)], int(actions_N[row])
                trajectory.observations.append(observations_ND[row])
                trajectory.actions.append(action)
                trajectory.logits.append(logits_NA[row])
                trajectory.log_probs.append(float(log_probs_NA[row, action]))
                trajectory.entropies.append(float(entropies_N[row]))
                trajectory.rewards.append(float(rewards_N[row]))
                trajectory.parts.append(Components(0.0, 0.0, float(rewards_N[row])))
            running = running[actions_N != STOP]
        for place, trajectory in enumerate(trajectories):
            trajectory.quality = float(offers.good_B[place])
            trajectory.scored.append((len(trajectory.actions), {}))
            trajectory.result = _result(trajectory.training.request, LOOKS - int(offers.left_B[place]))
        return trajectories


def _result(request: EpisodeRequest, looks: int) -> EpisodeResult:
    nothing: Any = None
    return EpisodeResult(request, nothing, looks, looks, 0, 1, float(looks), ())


class OfferEnvRunner(DiffusionEnvRunner):
    """The env runner of every algorithm, with offers in place of images."""

    def make_env(self) -> None:
        """Nothing to load."""
        collector: Any = OfferCollector()
        self.collector = collector


def learn(config: RunConfig, report: Callable[[int, Any], None]) -> PolicyNetwork:
    """Train a policy with the configured algorithm, as a run does; gives its network.

    `report` gets each iteration and RLlib's results.
    """
    nothing: Any = None
    settings = RunnerSettings(
        make_backbone=nothing,
        make_client=nothing,
        engine=EngineConfig(actions=ACTIONS),
        observer=OBSERVER,
        requests=tuple(EpisodeRequest(f"prompt {index}", index) for index in range(64)),
        episodes_per_iteration=config.ppo.episodes_per_iteration,
        slots=8,
        groups=1,
        seed=config.seed,
        episodes_per_request=config.algorithm.episodes_per_request,
    )
    target = Target({"clip_score": 0.0, "aesthetic": 0.0, "image_reward": 0.0})
    algorithm = (
        algorithm_config(replace(config, engine=settings.engine), settings)
        .env_runners(env_runner_cls=OfferEnvRunner)
        .build_algo()
    )
    try:
        algorithm.env_runner_group.sync_weights(
            from_worker_or_learner_group=algorithm.learner_group, inference_only=True
        )
        for iteration in range(config.ppo.iterations):
            give_orders(algorithm, Orders(iteration, config.reward, (target,) * 64))
            set_schedules(algorithm, config.ppo, iteration)
            report(iteration, algorithm.train())
        network: PolicyNetwork = algorithm.env_runner.module.policy
        return network
    finally:
        algorithm.stop()
