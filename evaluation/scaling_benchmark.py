"""How training scales with env runners, where denoiser and scorers only take time.

A training run from end to end (Ray actors, rewards service, RLlib's learner with real updates, the saved
policy), whose backbone sleeps DENOISING_S a call and whose scorers sleep SCORING_S a batch, so that all else
that happens is overhead.

Always true here: the ideal is the same collector's on a clock that only denoiser and scorers move; the policy
hardly ever stops early, so that both make the same images; iterations before `WARM` do not count.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import ray
import torch

from actors.collector import Collector
from actors.contracts import Conditioning, Denoised, EpisodeRequest, Images, PredictionType
from actors.engine import Engine, EngineConfig
from actors.ledger import Target
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.trajectory import TrainingRequest
from learner import session
from learner.algorithm_settings import AlgorithmName, AlgorithmSettings
from learner.config import CheckpointConfig, PPOSettings, PromptConfig, RegistryConfig, RunConfig
from learner.guard_config import WatchConfig
from learner.resources import ResourcesConfig
from learner.train import train
from rewards_service import service
from rewards_service.actor import PoolSpec
from rewards_service.arithmetic import RewardConfig
from rewards_service.contracts import Pending, Scorer, Scores
from rewards_service.local import LocalClient
from rewards_service.pool_config import PoolConfig

DENOISING_S, SCORING_S = 0.05, 0.03
STEPS, WARMUP_STEPS = 10, 3
FEATURES = 768
"""Of the mid block and of the pooled text: with the rest, observations about as wide as the seeds' 1672."""
SCORER_REPLICAS = 2
"""With one, a batch waits for the one before it, and two groups of slots no longer hide both."""
REWARDS = {
    "outcome": RewardConfig(
        profile="no_quality", score_every=64, gamma_d=1.0, sigma=1.0, c_nfe=0.02, terminal_range=3.0
    ),
    "balanced": RewardConfig(sigma=1.0),
}
"""As the reward files of these names: the first preview and the returned image are scored, or every one."""
WARM = 2
_CONTINUE_LOGIT = 10.0


class SleepingBackbone:
    """`Backbone` whose denoiser takes DENOISING_S a call, whatever the batch."""

    latent_shape = (4, 8, 8)
    prediction_type: PredictionType = "epsilon"
    alphas_cumprod = torch.linspace(0.999, 0.01, 1000, dtype=torch.float64)
    feature_dim = text_dim = FEATURES
    classifier_free = True
    flow_shift = 1.0
    device = torch.device("cpu")
    identity = "sleeping"

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """The same for all."""
        size = len(prompts)
        return Conditioning(
            text_BLD=torch.zeros(size, 2, 4),
            null_BLD=torch.zeros(size, 2, 4),
            pooled_BD=torch.ones(size, FEATURES),
            token_mask_BL=torch.ones(size, 2, dtype=torch.bool),
        )

    def denoise(
        self,
        latents_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        conditioning: Conditioning,
        guidance_scale_B: torch.Tensor,
        *,
        attention: bool = False,
    ) -> Denoised:
        """Nothing but time."""
        self.wait(DENOISING_S)
        features_BF = (
            latents_BCHW.flatten(1)[:, :1].expand(-1, FEATURES) + timesteps_B[:, None].float() / 1000
        )
        return Denoised(latents_BCHW * 0.5, features_BF, None)

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def decode(self, latents_BCHW: torch.Tensor) -> Images:
        """As large as a decision's preview."""
        shade_B = (latents_BCHW.mean(dim=(1, 2, 3)).sigmoid() * 255).numpy().astype(np.uint8)
        return np.broadcast_to(shade_B[:, None, None, None], (len(shade_B), 64, 64, 3)).copy()

    preview = decode


class SleepingScorer:
    """All scores from the brightness, after SCORING_S a batch."""

    name = "sleeping"
    outputs: tuple[str, ...] = ("clip_score", "aesthetic", "image_reward", "dino")

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """[N] each; dino [N, 2]."""
        time.sleep(SCORING_S)
        return _scores(images)


def _scores(images: Images) -> Scores:
    bright_N = images[:, 0, 0, 0].astype(np.float32) / 255.0
    dino_ND = np.stack([np.cos(bright_N), np.sin(bright_N)], axis=1).astype(np.float32)
    return {"clip_score": bright_N, "aesthetic": bright_N, "image_reward": bright_N, "dino": dino_ND}


def _sleeping_scorers() -> list[Scorer]:
    return [SleepingScorer()]


@contextlib.contextmanager
def sleeping_world(config: RunConfig) -> Iterator[session.World]:
    """What `train` reaches in place of a backbone and reward models."""
    name = f"bench-{os.getpid()}"
    pool = PoolConfig(replicas=SCORER_REPLICAS, cpus=0.0, gpus=0.0, batch_size=1024, max_queued=4096)
    replicas = service.start(name, [PoolSpec("sleeping", "sleeping", _sleeping_scorers, pool)])
    try:
        yield session.World(SleepingBackbone, partial(service.connect, name), "sleeping")
    finally:
        for replica in replicas:
            ray.kill(replica)


def measure(
    *, env_runners: int, slots: int, rounds: int, iterations: int, algorithm: str, reward: str
) -> dict[str, Any]:
    """A run of `env_runners`, each with `slots` slots that are filled `rounds` times an iteration.

    of_ideal: episodes a second over the ideal's; cpu_ms: of all processes, an episode, by what they are;
    cores_at_ideal: how many cores that would keep busy at the ideal rate, so with fewer than that, or hardly
    more, the machine is what limits; sampling_s, update_s, rest_s: median of an iteration's parts.
    """
    config = _config(env_runners, slots, rounds, iterations, cast(AlgorithmName, algorithm), reward)
    marks: list[tuple[float, dict[str, float], dict[str, Any]]] = []

    def mark(row: dict[str, Any]) -> None:
        if row["phase"] == "training":
            marks.append((time.perf_counter(), cpu_seconds(), row))

    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.txt"
        prompts.write_text("".join(f"prompt {index}\n" for index in range(slots)))
        train(config(folder), progress=mark, world=sleeping_world)
    counted = marks[WARM:]
    episodes = [mark[2]["episodes"] for mark in counted]
    seconds = np.diff([mark[0] for mark in marks[WARM - 1 :]])
    rate = sum(episodes) / float(seconds.sum())
    ideal = env_runners * slots * rounds / ideal_seconds(slots, rounds, reward)
    spent = Counter(marks[-1][1])
    spent.subtract(marks[WARM - 1][1])
    cpu_ms = {name: 1000 * value / sum(episodes) for name, value in spent.items()}
    middle = {
        name: statistics.median(mark[2][name] for mark in counted)
        for name in (
            "sampling_s",
            "update_s",
            "denoiser_utilisation",
            "waiting_share",
            "policy_lag",
            "decisions",
        )
    }
    iteration_s = statistics.median(seconds.tolist())
    return {
        "algorithm": algorithm,
        "reward": reward,
        "env_runners": env_runners,
        "slots": slots,
        "episodes_per_iteration": config(".").ppo.episodes_per_iteration,
        "iterations": len(counted),
        "episodes_per_s": rate,
        "ideal_episodes_per_s": ideal,
        "of_ideal": rate / ideal,
        "of_ideal_median": statistics.median(
            count / spent_s / ideal for count, spent_s in zip(episodes, seconds, strict=True)
        ),
        "iteration_s": iteration_s,
        "rest_s": iteration_s - middle["sampling_s"] - middle["update_s"],
        **middle,
        "cpu_ms": cpu_ms,
        "cores_at_ideal": ideal * sum(cpu_ms.values()) / 1000,
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def _config(
    env_runners: int, slots: int, rounds: int, iterations: int, algorithm: AlgorithmName, reward: str
) -> Callable[[str], RunConfig]:
    """By the folder that it writes to."""

    def config(folder: str) -> RunConfig:
        return RunConfig(
            runs_dir=folder,
            engine=EngineConfig(
                solver="ddim", num_steps=STEPS, warmup_steps=WARMUP_STEPS, actions=("continue", "stop")
            ),
            observation=ObservationConfig(),
            reward=REWARDS[reward],
            algorithm=AlgorithmSettings(algorithm),
            ppo=PPOSettings(
                iterations=iterations + WARM,
                episodes_per_iteration=env_runners * slots * rounds,
                num_epochs=4,
                lr=1e-6,
                continue_logit=_CONTINUE_LOGIT,
            ),
            prompts=PromptConfig(source=str(Path(folder) / "prompts.txt"), limit=slots, seeds=2),
            resources=ResourcesConfig(
                num_env_runners=env_runners,
                slots=slots,
                cpus_per_env_runner=0.01,
                num_cpus=max(os.cpu_count() or 1, 4),
            ),
            checkpoints=CheckpointConfig(every=10**6, trajectories=False),
            registry=RegistryConfig(enabled=False),
            watch=WatchConfig(every=0),  # its episodes are not in the ideal
        )

    return config


def check_algorithms(names: Sequence[str]) -> None:
    """Raise UserError for a name that is no algorithm."""
    for name in names:
        AlgorithmSettings(cast(AlgorithmName, name)).validate(num_env_runners=1, episodes_per_iteration=1)


def table(reports: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The reports as columns, with the names in front; the first row is the header."""
    rows = [["", *(f"{report['algorithm']}, {report['env_runners']}" for report in reports)]]
    for name in reports[0]:
        if name not in ("algorithm", "reward", "env_runners", "cpu_ms"):
            rows.append([name, *(f"{report[name]:.4g}" for report in reports)])
    for kind in reports[0]["cpu_ms"]:
        rows.append([f"cpu_ms {kind}", *(f"{report['cpu_ms'][kind]:.4g}" for report in reports)])
    return rows


def ideal_seconds(slots: int, rounds: int, reward: str) -> float:
    """Of an env runner for `slots` x `rounds` episodes, where only denoiser and scorers take time."""
    clock = _Clock()
    engine = Engine(clock.backbone, _config(1, slots, rounds, 1, "ppo", reward)(".").engine)
    observer = Observer(ObservationConfig(), ObservationSizes(FEATURES, FEATURES), engine.action_names)
    collector = Collector(engine, observer, clock, slots=slots, groups=2)
    target = Target({"clip_score": 0.0, "aesthetic": 0.0, "image_reward": 0.0})
    requests = [TrainingRequest(EpisodeRequest("", seed), (seed,), target) for seed in range(slots * rounds)]

    def always_on(_: np.ndarray[Any, Any], mask_BA: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.where(mask_BA, np.array([0.0, -100.0]), -1e9).astype(np.float32)

    collector.collect(requests, always_on, REWARDS[reward])
    return clock.now


class _Clock(LocalClient):
    """A backbone and a client whose time is a number."""

    def __init__(self) -> None:
        super().__init__([cast(Scorer, _Instant())])
        self.now = 0.0
        self.backbone = SleepingBackbone()
        self.backbone.wait = self._pass  # type: ignore[method-assign]

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    def submit(self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None) -> Any:
        """Ready SCORING_S from now."""
        return _Due(self, self.now + SCORING_S, super().submit(images, prompts, outputs))


class _Instant:
    name, outputs = "instant", SleepingScorer.outputs

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        return _scores(images)


class _Due:
    def __init__(self, clock: _Clock, due: float, pending: Pending) -> None:
        self.clock, self.due, self.pending = clock, due, pending

    def result(self) -> Scores:
        self.clock.now = max(self.clock.now, self.due)
        return self.pending.result()


_KINDS = {
    "ray::DiffusionEnvRunner": "env runners",
    "ray::RewardActor": "scorers",
    "raylet": "Ray",
    "gcs_server": "Ray",
    "ray::": "Ray",
}


def cpu_seconds() -> dict[str, float]:
    """Processor time of this process and of all below it so far, by what they are."""
    spent: dict[str, float] = dict.fromkeys(["driver", "env runners", "scorers", "Ray"], 0.0)
    this = psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, IndexError):
            name = process.cmdline()[0].rpartition("/")[2] if process != this else ""
            kind = next((kind for start, kind in _KINDS.items() if name.startswith(start)), "Ray")
            times = process.cpu_times()
            spent["driver" if process == this else kind] += times.user + times.system
    return spent
