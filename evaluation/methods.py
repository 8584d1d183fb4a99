"""What is compared: a policy or a baseline, as something that travels to a process and opens there.

Always true here: a method is plain data; opened on a bench it is a sampler, which makes requests into
finished episodes, and nothing else tells a policy from a baseline. A method's key changes whenever its
images could.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from actors.contracts import Decider, EpisodeRequest, EpisodeResult, QualityScorer
from actors.engine import Engine, EngineConfig
from actors.observations import Observer
from actors.policy import WEIGHTS_FILE
from actors.policy_folder import TrainedPolicy, read_trained_policy
from actors.rollout import rollout
from evaluation.baselines.names import Baseline
from evaluation.bench import Bench


class Sampler(Protocol):
    """An opened method."""

    def run(
        self, requests: Sequence[EpisodeRequest], *, slots: int, record_previews: bool = False
    ) -> list[EpisodeResult]:
        """Finished episodes in the order of the requests; about `slots` images share a denoiser call.

        Every denoiser call and every scored image that led to an episode's image is counted in it.
        """
        ...


@dataclass(frozen=True)
class OpenMethod:
    """A sampler that decides in the engine: a policy, or a fixed rule."""

    engine: Engine
    observer: Observer
    decider: Decider
    scorer: QualityScorer | None

    def run(
        self, requests: Sequence[EpisodeRequest], *, slots: int, record_previews: bool = False
    ) -> list[EpisodeResult]:
        """By continuous batching."""
        return rollout(
            self.engine,
            self.decider,
            self.observer,
            requests,
            slots=slots,
            scorer=self.scorer,
            record_previews=record_previews,
        )


class Method(Protocol):
    """A policy or a baseline."""

    @property
    def name(self) -> str:
        """What it is called in rows, summaries and figures."""
        ...

    @property
    def key(self) -> str:
        """Ten hex digits that differ whenever the images of a method of this name could."""
        ...

    def open(self, bench: Bench) -> Sampler:
        """Make everything it needs."""
        ...


@dataclass(frozen=True)
class BaselineMethod:
    """A baseline, with the engine options that it takes from the policy it is compared with."""

    baseline: Baseline
    engine: EngineConfig

    @property
    def name(self) -> str:
        """The baseline's name."""
        return self.baseline.name

    @property
    def key(self) -> str:
        """Of the engine's options, and of the file where it is made from one."""
        file = self.baseline.file
        if file is None or not Path(file).is_file():
            return config_hash(self.engine)
        return _digest(config_hash(self.engine).encode() + Path(file).read_bytes())

    def open(self, bench: Bench) -> Sampler:
        """On this bench; UserError if it cannot run there."""
        from evaluation.baselines.opening import open_baseline  # diffusers' schedulers and pipelines

        return open_baseline(self.baseline, self.engine, bench)


@dataclass(frozen=True)
class PolicyMethod:
    """A trained policy in a folder, with the engine and the observation it was trained with.

    verify=False is for transfer: on a backbone with other weights, of the same widths.
    """

    trained: TrainedPolicy
    greedy: bool
    seed: int
    verify: bool = True

    name = "policy"

    @property
    def engine(self) -> EngineConfig:
        """The engine it was trained with."""
        return self.trained.engine

    @property
    def key(self) -> str:
        """Of the weights, and of everything that tells how they act."""
        told = (self.trained.observation, self.trained.stop_threshold, self.greedy, self.seed)
        weights = (Path(self.trained.folder) / WEIGHTS_FILE).read_bytes()
        return _digest(f"{config_hash(self.engine)} {told}".encode() + weights)

    def open(self, bench: Bench) -> OpenMethod:
        """The policy on this bench; UserError if it was trained on another backbone."""
        engine, observer, network = self.trained.open(bench.backbone, verify=self.verify)
        decider = self.trained.decider(network, observer, greedy=self.greedy, seed=self.seed)
        return OpenMethod(engine, observer, decider, bench.scorer(*observer.look_outputs))


def read_policy(folder: Path, *, greedy: bool, seed: int) -> PolicyMethod:
    """The policy that training left in a folder; UserError if it does not say how it was trained."""
    # Absolute: a worker on Ray, which opens it, has another working directory.
    return PolicyMethod(read_trained_policy(folder.absolute()), greedy, seed)


def config_hash(config: EngineConfig) -> str:
    """Ten hex digits that differ whenever any engine option differs."""
    return _digest(json.dumps(asdict(config), sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:10]
