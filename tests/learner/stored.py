"""Stored episodes of the toy world, gathered by scripts: one knows what to do, one knows nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from actors import trajectory_store
from actors.collector import Collector
from actors.contracts import EpisodeRequest
from actors.engine import Engine
from actors.ledger import Target
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.policy import ILLEGAL_LOGIT, PolicyNetwork
from actors.references import Reference
from actors.trajectory import TrainingRequest, Trajectory
from actors.trajectory_origin import Origin
from learner.calibration import normalisation
from learner.config import RunConfig
from rewards_service.arithmetic import RewardConfig
from tests.learner.toy import ToyBackbone, make_client, toy_config

Logits = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]]
CONTINUE, STOP, LOOK, RESTART = range(4)
PROMPTS = tuple(f"prompt {'x' * length}" for length in range(1, 9))
SIZES = ObservationSizes(2, 3)


def scripted(observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Stop on a good image, else give it up while that is possible; the first feature is the image."""
    logits_BA = np.zeros(mask_BA.shape, np.float32)
    good_B = observations_BD[:, 0] > 0
    wanted_B = np.where(good_B | ~mask_BA[:, RESTART], STOP, RESTART)
    logits_BA[np.arange(len(wanted_B)), wanted_B] = 20.0
    logits_BA[~mask_BA] = ILLEGAL_LOGIT
    return logits_BA


def aimless(observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]) -> NDArray[np.float32]:
    """All legal actions alike."""
    return np.where(mask_BA, 0.0, ILLEGAL_LOGIT).astype(np.float32)


def tossing(observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Stop by coin toss, whatever is seen; else go on as a good policy would."""
    logits_BA = np.full(mask_BA.shape, -4.0, np.float32)
    bad_B = observations_BD[:, 0] < 0
    wanted_B = np.where(bad_B & mask_BA[:, RESTART], RESTART, CONTINUE)
    logits_BA[np.arange(len(wanted_B)), wanted_B] = logits_BA[:, STOP] = 0.0
    logits_BA[~mask_BA] = ILLEGAL_LOGIT
    return logits_BA


def by_network(network: PolicyNetwork) -> Logits:
    """A trained policy."""

    def logits(observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]) -> NDArray[np.float32]:
        inputs_BD = torch.from_numpy(observations_BD[:, : network.policy_dim])
        with torch.inference_mode():
            result: NDArray[np.float32] = network(inputs_BD, torch.from_numpy(mask_BA)).numpy()
        return result

    return logits


def world(runs_dir: Path) -> RunConfig:
    """The toy world, paid for the image that is returned and for NFE alone."""
    reward = RewardConfig(profile="no_quality", c_nfe=0.02, gamma_d=1.0, beta={"image_reward": 1.0})
    return toy_config(runs_dir, reward=reward)


def gather(policy: Logits, runs_dir: Path, episodes: int, *, seed: int, seeds: int = 64) -> list[Trajectory]:
    """Episodes of the toy world; each prompt comes with `seeds` noises again and again."""
    config = world(runs_dir)
    observer = Observer(ObservationConfig(), SIZES, config.engine.actions)
    collector = Collector(Engine(ToyBackbone(), config.engine), observer, make_client(), slots=64, groups=1)
    target = Target({"clip_score": 0.5, "aesthetic": 0.5, "image_reward": 0.5})
    requests = []
    for number in range(episodes):
        round_, prompt = divmod(number, len(PROMPTS))
        noise = 10_000 * seed + 100 * prompt + round_ % seeds
        requests.append(TrainingRequest(EpisodeRequest(PROMPTS[prompt], noise), (seed, number), target))
    return collector.collect(requests, policy, config.reward)


def store(trajectories: Sequence[Trajectory], folder: Path, *, value: float | None = None) -> Path:
    """Write them as a run would, in files of 64 episodes; `value` is the critic's everywhere."""
    folder.mkdir(parents=True)
    config = world(folder.parent)
    for trajectory in trajectories:
        trajectory.values = [] if value is None else [value] * len(trajectory.actions)
    for start in range(0, len(trajectories), 64):
        path = trajectory_store.file_name(folder, start // 64, 1)
        trajectory_store.write(trajectories[start : start + 64], path, weights_seq_no=start // 64)
    observer = Observer(ObservationConfig(), SIZES, config.engine.actions)
    width = observer.dim - observer.num_actions
    seen = [
        Reference(each.training.request, {}, 0, np.stack(each.observations)[:, :width])
        for each in trajectories
    ]
    statistics = normalisation(seen, observer)
    metadata = {
        "backbone": "toy",
        "backbone_config": config.as_dict()["backbone"],
        "engine": config.as_dict()["engine"],
        "observation": config.as_dict()["observation"],
        "sizes": asdict(SIZES),
        "actions": list(config.engine.actions),
        "run": "toy",
        "seed": 0,
        "iteration": 0,
    }
    mean, std = statistics.mean_D.tolist(), statistics.std_D.tolist()
    Origin(metadata, config.as_dict(), mean, std).write(folder)
    return folder


def mean_return(trajectories: Sequence[Trajectory]) -> float:
    return float(np.mean([sum(trajectory.rewards) for trajectory in trajectories]))
