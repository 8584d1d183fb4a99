"""How long one PPO update takes: RLlib's learner as a run builds it, on episodes of the seeds' observation.

Always true here: what is timed is the whole update, from episodes to weights; every repetition begins with
fresh episodes and the same weights' shapes; one thread. Predicted operations are counted by hand, and beside
them stands what torch counts.
"""

from __future__ import annotations

import os
import statistics
import time
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch.utils.flop_counter import FlopCounterMode

from actors.contracts import EpisodeRequest
from actors.engine import EngineConfig
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.orders import RunnerSettings
from learner.config import PPOSettings, RunConfig
from learner.ppo import ppo_config

ACTIONS = ("continue", "stop", "refine")
EPOCHS = 4
EPISODES = 64
MINIBATCHES = (64, 128, 256, 512, 2048)
HIDDEN = (512, 256)


def measure(*, decisions: int, repeats: int) -> dict[str, Any]:
    """One update of `decisions` decisions, EPOCHS passes, for each of MINIBATCHES; medians over `repeats`.

    seconds: wall; cpu_s: of this process, which other work on the machine hardly touches; conversion_s: of
    `seconds`, from episodes to a batch with advantages; gflop_predicted: by hand; gflop_counted: by torch;
    gflop_per_s: of a matrix product of the first layer's shape and the minibatch's, measured here;
    predicted_s: their quotient, the bound of an update that does nothing else.
    """
    torch.set_num_threads(1)
    observer = Observer(
        ObservationConfig("seed", critic_sees_quality=False), ObservationSizes(0, 0, 768), ACTIONS
    )
    report: dict[str, Any] = {
        "decisions": decisions,
        "width": observer.policy_dim,
        "epochs": EPOCHS,
        "repeats": repeats,
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }
    report["minibatches"] = {
        str(size): _measure_one(observer, decisions, size, repeats) for size in MINIBATCHES
    }
    return report | {"load_after": os.getloadavg()[0]}


def flop(observer: Observer, rows: int) -> float:
    """Floating-point operations of one gradient step over `rows` rows, both networks.

    Forward 2 a weight, backward the same for the weights and once more for the inputs of all layers but the
    first.
    """
    total = 0
    for outputs in (observer.num_actions, 1):
        sizes = [observer.policy_dim, *HIDDEN, outputs]
        products = [width_in * width_out for width_in, width_out in pairwise(sizes)]
        total += 2 * (3 * sum(products) - products[0])
    return float(total * rows)


def _measure_one(observer: Observer, decisions: int, size: int, repeats: int) -> dict[str, Any]:
    learner = _learner(observer, size)
    steps = _steps(decisions, size)
    seconds, cpu, conversion = [], [], []
    for repeat in range(repeats + 1):
        fresh = _episodes(observer, decisions)  # an update changes its episodes
        converting = _Timed(learner, "_learner_connector")
        before, cpu_before = time.perf_counter(), time.process_time()
        with converting:
            learner.update(
                episodes=fresh,
                num_epochs=EPOCHS,
                minibatch_size=size,
                shuffle_batch_per_epoch=True,
                timesteps={},
            )
        if repeat:
            seconds.append(time.perf_counter() - before)
            cpu.append(time.process_time() - cpu_before)
            conversion.append(converting.seconds)
    with FlopCounterMode(display=False) as counter:
        learner.update(
            episodes=_episodes(observer, decisions),
            num_epochs=EPOCHS,
            minibatch_size=size,
            shuffle_batch_per_epoch=True,
            timesteps={},
        )
    # Besides the steps: the critic's values of all decisions and of each episode's end, for the advantages.
    critic = sum(2 * a * b for a, b in pairwise([observer.policy_dim, *HIDDEN, 1]))
    predicted = (flop(observer, steps * size) + critic * (decisions + EPISODES)) / 1e9
    rate = _gflop_per_s(size, observer.policy_dim)
    return {
        "seconds": statistics.median(seconds),
        "least_s": min(seconds),
        "most_s": max(seconds),
        "cpu_s": statistics.median(cpu),
        "conversion_s": statistics.median(conversion),
        "gradient_steps": steps,
        "gflop_predicted": predicted,
        "gflop_counted": counter.get_total_flops() / 1e9,
        "gflop_per_s": rate,
        "predicted_s": predicted / rate,
    }


def _steps(decisions: int, size: int) -> int:
    """RLlib goes around its rows, the ends of episodes among them, in whole minibatches."""
    return -(-EPOCHS * (decisions + EPISODES) // size)


def _learner(observer: Observer, minibatch_size: int) -> Any:
    nothing: Any = None
    config = RunConfig(
        engine=EngineConfig(actions=ACTIONS),
        ppo=PPOSettings(num_epochs=EPOCHS, minibatch_size=minibatch_size, hidden=HIDDEN),
    )
    settings = RunnerSettings(
        nothing, nothing, config.engine, observer, (EpisodeRequest("", 0),), EPISODES, 1, 1, seed=0
    )
    return ppo_config(config, settings).build_learner(env=None, spaces={DEFAULT_MODULE_ID: _spaces(observer)})


def _spaces(observer: Observer) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
    box = gymnasium.spaces.Box(-np.inf, np.inf, (observer.dim,), np.float32)
    return box, gymnasium.spaces.Discrete(observer.num_actions)


def _episodes(observer: Observer, decisions: int) -> list[SingleAgentEpisode]:
    """EPISODES of about the same length, `decisions` decisions in all."""
    generator = np.random.default_rng(0)
    found = []
    observation_space, action_space = _spaces(observer)
    for index, rows in enumerate(np.array_split(np.arange(decisions), EPISODES)):
        steps = len(rows)
        observations_TD = generator.normal(size=(steps + 1, observer.dim)).astype(np.float32)
        observations_TD[:, -observer.num_actions :] = 1.0
        found.append(
            SingleAgentEpisode(
                id_=str(index),
                observations=list(observations_TD),
                observation_space=observation_space,
                actions=generator.integers(observer.num_actions, size=steps).tolist(),
                action_space=action_space,
                rewards=generator.normal(size=steps).tolist(),
                terminated=True,
                extra_model_outputs={
                    Columns.ACTION_LOGP: [np.float32(-np.log(observer.num_actions))] * steps,
                    Columns.ACTION_DIST_INPUTS: list(np.zeros((steps, observer.num_actions), np.float32)),
                },
                len_lookback_buffer=0,
            ).to_numpy()
        )
    return found


def _gflop_per_s(rows: int, width: int, repeats: int = 20) -> float:
    inputs, weights = torch.randn(rows, width), torch.randn(width, HIDDEN[0])
    seconds = []
    for _ in range(repeats):
        before = time.process_time()
        for _ in range(4):
            inputs @ weights
        seconds.append(time.process_time() - before)
    return 4 * 2 * rows * width * HIDDEN[0] / statistics.median(seconds) / 1e9


class _Timed:
    """While open, sums the seconds of calls to an object's callable attribute."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name, self.seconds = owner, name, 0.0

    def __enter__(self) -> None:
        self.plain = getattr(self.owner, self.name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            before = time.perf_counter()
            try:
                return self.plain(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - before

        setattr(self.owner, self.name, timed)

    def __exit__(self, *_: object) -> None:
        setattr(self.owner, self.name, self.plain)
