"""Every option of a training run, typed: the one object that `train` takes.

Nothing here reads a file: `tune_configs/` fills these classes from YAML, tests fill them in Python.
`RunConfig.validate` finds every impossible value before anything starts and says it in one line that
names the option, the value and what is accepted.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from actors.backbones.config import BackboneConfig
from actors.engine import EngineConfig
from actors.errors import HIDDEN, UserError, redacted
from actors.observations import ObservationConfig
from actors.prompts import Columns, Prompt, load_prompts
from learner.algorithm_settings import AlgorithmSettings
from learner.budget import check_target
from learner.curriculum import CurriculumConfig
from learner.guard_config import GuardsConfig, ProgressConfig, WatchConfig
from learner.resources import ResourcesConfig, check_separate
from rewards_service.arithmetic import RewardConfig
from rewards_service.pool_config import ServiceConfig

#: What MLflow takes as an alias, and what of it means versions to it.
_ALIAS = re.compile(r"[\w-]{1,255}")
_RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)


@dataclass(frozen=True)
class PPOSettings:
    """Proximal policy optimisation (Schulman et al., 2017) as RLlib runs it; other algorithms use what they
    have in common with it.

    The discount is `reward.gamma_d`, one number for shaping and for the returns.

    iterations: updates of the whole run; episodes_per_iteration: finished episodes in each; time_limit_s:
    stop earlier after so many seconds of iterations (None: never); lr: Adam's step size in the first
    iteration, lr_end_share: what is left of it in the last one, linear between; lambda_: GAE's lambda;
    clip_param: PPO's clip; value_coeff: weight of the value loss; value_clip: bound of one squared value
    error; entropy_start, entropy_end: entropy bonus, the first until `entropy_hold` of the run, linear
    from there, the second from `entropy_decay` of the run on; grad_clip: bound of the gradient's global
    norm; num_epochs: passes over each iteration's decisions; minibatch_size: decisions in one gradient
    step; hidden: widths of policy and value network; continue_logit: how far `continue` starts above the
    other actions, so that the first policy is close to the fixed schedule it has to beat and seldom ends
    an image early (0: uniform).
    """

    iterations: int = 60
    episodes_per_iteration: int = 64
    time_limit_s: float | None = None
    lr: float = 3e-4
    lr_end_share: float = 1.0
    lambda_: float = 0.95
    clip_param: float = 0.2
    value_coeff: float = 0.5
    value_clip: float = 10.0
    entropy_start: float = 0.02
    entropy_end: float = 0.003
    entropy_hold: float = 0.0
    entropy_decay: float = 1.0
    grad_clip: float = 0.5
    num_epochs: int = 6
    minibatch_size: int = 512
    hidden: tuple[int, ...] = (512, 256)
    continue_logit: float = 0.0


@dataclass(frozen=True)
class PromptConfig:
    """What is trained on: `limit` prompts, each with `seeds` initial noises; the same pairs every pass.

    source: "shapes", a file, or a dataset of the hub ("hf:OWNER/NAME"), see docs/prompts.md; split: of the
    embedded world or of a dataset; seed: which captions of the embedded world, and every initial noise;
    column, tier_column: of a table whose columns are not called `prompt` and `tier`.
    """

    source: str = "shapes"
    split: str = "train"
    limit: int | None = 256
    seeds: int = 2
    seed: int = 0
    column: str | None = None
    tier_column: str | None = None

    def load(self) -> list[Prompt]:
        """The prompts that these options mean. Raises UserError."""
        columns = Columns(self.column, self.tier_column)
        return load_prompts(self.source, self.split, self.limit, self.seed, columns=columns)


@dataclass(frozen=True)
class CheckpointConfig:
    """every: iterations between two full checkpoints; keep: how many of them stay;
    trajectories: write every training episode to Parquet; trajectory_previews: with the image that was
    seen at every decision, which costs a decoding each.
    """

    every: int = 10
    keep: int = 2
    trajectories: bool = True
    trajectory_previews: bool = False


@dataclass(frozen=True)
class RegistryConfig:
    """Where the trained policy is registered.

    enabled: False trains without MLflow; tracking_uri: None is a sqlite file in `runs_dir`;
    experiment: MLflow's experiment; alias: set on the new version; patience_s: how long registering is
    tried where MLflow does not answer. User and password of the address are not stored with a run: what
    goes on with it takes them from MLFLOW_TRACKING_URI again.
    """

    enabled: bool = True
    tracking_uri: str | None = None
    experiment: str = "addiffusion"
    alias: str = "candidate"
    patience_s: float = 120.0

    def __post_init__(self) -> None:
        given = os.environ.get("MLFLOW_TRACKING_URI", "")
        if f"://{HIDDEN}@" in (self.tracking_uri or "") and redacted(given) == self.tracking_uri:
            object.__setattr__(self, "tracking_uri", given)

    def validate(self) -> None:
        """Raise UserError for what MLflow would refuse once the policy is trained."""
        _within("registry.patience_s", self.patience_s, 0.0, 86400.0)
        if not _ALIAS.fullmatch(self.alias) or _RESERVED_ALIAS.fullmatch(self.alias):
            raise UserError(
                f"registry.alias={self.alias!r}: give a name such as candidate, of letters, digits, - and _ "
                "('latest' and 'v1' are MLflow's own)"
            )
        if self.alias.lower() == "champion":
            raise UserError(
                f"registry.alias={self.alias}: `addiffusion registry promote` gives it, after its gate; "
                "give another name, such as candidate"
            )
        if not self.experiment.strip():
            raise UserError(f"registry.experiment={self.experiment!r}: give a name such as addiffusion")

    def as_dict(self) -> dict[str, Any]:
        """Plain data to be stored or shown, without user and password of the address."""
        uri = self.tracking_uri
        return asdict(self) | {"tracking_uri": None if uri is None else redacted(uri)}


@dataclass(frozen=True)
class RunConfig:
    """One training run; its results are in `runs_dir`/`name`."""

    name: str = "run"
    seed: int = 0
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmSettings = field(default_factory=AlgorithmSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    rewards: ServiceConfig = field(default_factory=ServiceConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    progress: ProgressConfig = field(default_factory=ProgressConfig)
    runs_dir: str = "runs"

    @property
    def run_dir(self) -> Path:
        """The folder of this run."""
        return Path(self.runs_dir) / self.name

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dicts, lists and scalars, as YAML and JSON take them."""
        plain = _plain(asdict(self) | {"registry": self.registry.as_dict()})
        assert isinstance(plain, dict)
        return plain

    def validate(self) -> None:
        """Raise UserError for the first value that cannot work."""
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise UserError(f"name={self.name!r}: give a folder name without '/' or a leading '.'")
        for option, seed in {"seed": self.seed, "prompts.seed": self.prompts.seed}.items():
            check_seed(option, seed)
        ppo, resources = self.ppo, self.resources
        for option, value in {
            "ppo.iterations": ppo.iterations,
            "ppo.episodes_per_iteration": ppo.episodes_per_iteration,
            "ppo.num_epochs": ppo.num_epochs,
            "ppo.minibatch_size": ppo.minibatch_size,
            "prompts.seeds": self.prompts.seeds,
            "checkpoints.every": self.checkpoints.every,
            "checkpoints.keep": self.checkpoints.keep,
        }.items():
            _at_least_one(option, value)
        if self.prompts.limit is not None:
            _at_least_one("prompts.limit", self.prompts.limit)
        if ppo.time_limit_s is not None:
            _inside("ppo.time_limit_s", ppo.time_limit_s, 0.0, math.inf)
        _inside("ppo.lr", ppo.lr, 0.0, 1.0)
        _within("ppo.lr_end_share", ppo.lr_end_share, 0.0, 1.0)
        _inside("ppo.clip_param", ppo.clip_param, 0.0, 1.0)
        _inside("ppo.grad_clip", ppo.grad_clip, 0.0, math.inf)
        _inside("ppo.value_clip", ppo.value_clip, 0.0, math.inf)
        _within("ppo.lambda_", ppo.lambda_, 0.0, 1.0)
        _within("ppo.value_coeff", ppo.value_coeff, 0.0, 100.0)
        _within("ppo.entropy_start", ppo.entropy_start, 0.0, 1.0)
        _within("ppo.entropy_end", ppo.entropy_end, 0.0, 1.0)
        _within("ppo.entropy_decay", ppo.entropy_decay, 0.0, 1.0)
        _within("ppo.entropy_hold", ppo.entropy_hold, 0.0, ppo.entropy_decay)
        _within("ppo.continue_logit", ppo.continue_logit, -10.0, 10.0)
        resources.validate()
        check_separate(resources, self.rewards)
        self.curriculum.validate()
        check_target(self.reward, self.engine)
        if not ppo.hidden or any(width < 1 for width in ppo.hidden):
            raise UserError(f"ppo.hidden={list(ppo.hidden)}: give one or more widths >= 1")
        if ppo.episodes_per_iteration < resources.num_env_runners:
            raise UserError(
                f"ppo.episodes_per_iteration={ppo.episodes_per_iteration}: give at least one episode "
                f"for each of the {resources.num_env_runners} env runners"
            )
        self.algorithm.validate(
            num_env_runners=resources.num_env_runners, episodes_per_iteration=ppo.episodes_per_iteration
        )
        if self.rewards.service is not None and resources.address is None:
            raise UserError(
                f"rewards.service={self.rewards.service!r}: give resources.address too; a local Ray has no "
                "service that runs already"
            )
        if self.backbone.cache is not None and resources.slots > 1:
            raise UserError(
                f"resources.slots={resources.slots}: give 1 with backbone.cache={self.backbone.cache}, which "
                "serves one episode at a time"
            )
        self.registry.validate()


def check_seed(option: str, seed: int) -> None:
    """UserError for a seed that NumPy, torch or RLlib does not take."""
    if not 0 <= seed < 2**32:
        raise UserError(f"{option}={seed}: give an integer from 0 to {2**32 - 1}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _at_least_one(option: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{option}={value}: give an integer >= 1")


def _inside(option: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise UserError(f"{option}={value}: give a number above {low:g} and below {high:g}")


def _within(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{option}={value}: give a number from {low:g} to {high:g}")
