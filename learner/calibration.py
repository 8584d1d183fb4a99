"""What is measured on references before the first update: scales, sigma, and the observations' statistics.

Always true here: it sees reference trajectories only, so it is the same for every policy; no scale is zero.
A scale is one standard deviation, not a robust one: the noises of a prompt differ by the few images that
fail, which are what a policy can do something about, and a median would call them outliers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from actors.collector import Collector
from actors.contracts import Backbone, EpisodeRequest
from actors.engine import Engine
from actors.errors import UserError
from actors.files import written_aside
from actors.observations import ObservationSizes, Observer
from actors.references import Reference, ReferenceKind, reference_config, run_references
from learner.config import RunConfig
from learner.references import FOLDER, ReferenceStore
from rewards_service.arithmetic import RewardConfig, quality, required_outputs
from rewards_service.contracts import METRICS
from rewards_service.local import LocalClient

#: Below this spread an input is constant in the calibration batch and is left as it is.
_CONSTANT = 1e-3
_NOTHING = 1e-6


@dataclass(frozen=True)
class Calibration:
    """How much of each metric counts as 1, and which difference of `quality`, made of these, does."""

    scales: dict[str, float]
    sigma: float

    def applied(self, reward: RewardConfig) -> RewardConfig:
        """The reward with these numbers; those of metrics that were not measured stay."""
        return replace(reward, scales={**reward.scales, **self.scales}, sigma=self.sigma)

    def write(self, path: Path, measured_on: str) -> None:
        """Write a file that `addiffusion train @FILE` takes; its first line says what was `measured_on`."""
        options = {"reward": {"scales": self.scales, "sigma": self.sigma}}
        with written_aside(path) as aside:
            aside.write_text(
                f"# Measured on {measured_on}; to train with it: addiffusion train @{path}\n"
                + yaml.safe_dump(options, sort_keys=False),
                encoding="utf-8",
            )


def calibrate(references: Sequence[Reference], reward: RewardConfig) -> Calibration:
    """The scales of every metric that all references were scored by, then sigma of the quality they give.

    Where the reward has its sigma already, nothing is measured: it gives back its own numbers.
    """
    if reward.sigma is not None:
        return Calibration(dict(reward.scales), reward.sigma)
    prompts = [reference.request.prompt for reference in references]
    scales = score_scales(references)
    scaled = replace(reward, scales={**reward.scales, **scales})
    qualities = np.array([quality(reference.scores, scaled) for reference in references])
    return Calibration(scales, spread(prompts, qualities))


def score_scales(references: Sequence[Reference]) -> dict[str, float]:
    """How much of each metric that was scored counts as 1: what the seeds of one prompt make it differ by."""
    prompts = [reference.request.prompt for reference in references]
    scales = {}
    for metric, output in METRICS.items():
        if all(output in reference.scores for reference in references):
            values = np.array([reference.scores[output] for reference in references])
            scales[metric] = spread(prompts, values)
    return scales


def spread(prompts: Sequence[str], values_N: NDArray[np.float64]) -> float:
    """Standard deviation within a prompt, pooled; over all prompts where each has one seed only.

    1 where nothing differs, as a scale must not be 0.
    """
    assert np.isfinite(values_N).all(), "a reference's score is not finite"
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values_N, strict=True):
        groups.setdefault(prompt, []).append(float(value))
    freedom = len(values_N) - len(groups)
    if freedom > 0:
        squares = sum(float(np.square(np.array(group) - np.mean(group)).sum()) for group in groups.values())
        deviation = float(np.sqrt(squares / freedom))
    else:
        deviation = float(values_N.std())
    return deviation if deviation > _NOTHING else 1.0


def local_references(
    config: RunConfig,
    backbone: Backbone,
    client: LocalClient,
    scorers: str,
    requests: Sequence[EpisodeRequest],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Reference]:
    """The references of a run under `config`, in this process; those that are not there yet are run and kept.

    They are scored by every metric that `client` has, whatever the reward needs. scorers: their identity;
    `report` gets how many of the missing ones are done, and how many there are. Raises UserError for a reward
    that the scorers do not serve.
    """
    unknown = [name for name in required_outputs(config.reward) if name not in client.outputs]
    if unknown:
        raise UserError(
            f"reward needs {unknown[0]!r}, which backbone.scorers do not give; accepted: weights of"
            f" {', '.join(name for name, output in METRICS.items() if output in client.outputs)}"
        )
    engine = Engine(backbone, reference_config(config.engine, config.engine.num_steps))
    sizes = ObservationSizes(backbone.feature_dim, backbone.text_dim)
    observer = Observer(replace(config.observation, policy="timestep"), sizes, engine.action_names)
    slots = config.resources.slots
    collector = Collector(engine, observer, client, slots=slots, groups=config.resources.groups)
    outputs = [output for output in METRICS.values() if output in client.outputs]
    kind = ReferenceKind.of(engine.config, backbone.identity, config.backbone.dtype, scorers)

    def compute(missing: list[EpisodeRequest]) -> Iterator[list[Reference]]:
        for start in range(0, len(missing), slots):
            yield run_references(collector, missing[start : start + slots], outputs, observe=False)
            report(min(start + slots, len(missing)), len(missing))

    return ReferenceStore(Path(config.runs_dir) / FOLDER, kind).complete(requests, outputs, compute)


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of every input of the critic, the policy's first."""

    mean_D: NDArray[np.float32]
    std_D: NDArray[np.float32]


def normalisation(references: Sequence[Reference], observer: Observer) -> Normalisation:
    """Statistics of the observations seen on the way, completed by the observer.

    An input that never changed is left as it is.
    """
    seen = [reference.observations_TD for reference in references if reference.observations_TD is not None]
    observations_ND = np.concatenate(seen)
    mean_D, std_D = observations_ND.mean(axis=0), observations_ND.std(axis=0)
    constant = std_D < _CONSTANT
    mean_D[constant], std_D[constant] = 0.0, 1.0
    return Normalisation(*observer.complete_statistics(mean_D.astype(np.float32), std_D.astype(np.float32)))
