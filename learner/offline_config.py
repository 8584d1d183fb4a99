"""Every option of `addiffusion offline`, typed: learning from stored episodes, without denoising one.

Nothing here reads a file; `tune_configs/offline.yaml` fills these classes. `OfflineConfig.validate` finds
every impossible value before anything starts and says it in one line.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from actors.errors import UserError
from learner.config import RegistryConfig, check_seed

Algorithm = Literal["bc", "marwil", "dpo"]
PairKind = Literal["state", "prompt"]


@dataclass(frozen=True)
class MARWILSettings:
    """Monotonic advantage re-weighted imitation learning (Wang et al., 2018) as RLlib runs it.

    beta: 0 imitates every action alike (that is `bc`), 1 weighs each by exp(advantage in standard
    deviations); value_coeff: weight of the value loss.
    """

    beta: float = 1.0
    value_coeff: float = 1.0


@dataclass(frozen=True)
class DPOSettings:
    """Direct preference optimisation (Rafailov et al., 2023) of one question: stop here, or go on?

    beta: how dear it is to leave the behaviour, DPO's beta; pairs: "state" compares episodes of the same
    prompt and seed that parted in the same state, "prompt" also episodes of the same prompt with other
    noise, by their advantages; margin: by how much the better one has to be better, in units of the
    return; pairs_per_state: at most so many from one state (or prompt); warmup_share: of the iterations,
    in which the behaviour is imitated before the first preference counts.
    """

    beta: float = 0.1
    pairs: PairKind = "state"
    margin: float = 0.05
    pairs_per_state: int = 8
    warmup_share: float = 0.3


@dataclass(frozen=True)
class OfflineConfig:
    """One offline training; its results are in `runs_dir`/`name`.

    algorithm: bc, marwil or dpo; trajectories: folders of stored episodes, or the runs that hold them;
    iterations: rows of progress.jsonl, each after `updates_per_iteration` gradient steps on `minibatch_size`
    decisions (pairs, for dpo); held_out: share of the prompts whose episodes are not learnt from, but
    measured on; lr: Adam's step size; grad_clip: bound of the gradient's global norm; hidden: widths of
    policy and value network; num_cpus: CPUs of the local Ray that bc and marwil start (None: all);
    torch_threads: in this process.
    """

    algorithm: Algorithm = "marwil"
    trajectories: str | tuple[str, ...] = ()
    name: str = "offline"
    seed: int = 0
    runs_dir: str = "runs"
    iterations: int = 20
    updates_per_iteration: int = 100
    minibatch_size: int = 512
    held_out: float = 0.1
    lr: float = 1e-3
    grad_clip: float = 10.0
    hidden: tuple[int, ...] = (512, 256)
    num_cpus: int | None = None
    torch_threads: int = 1
    marwil: MARWILSettings = field(default_factory=MARWILSettings)
    dpo: DPOSettings = field(default_factory=DPOSettings)
    registry: RegistryConfig = field(default_factory=RegistryConfig)

    @property
    def run_dir(self) -> Path:
        """The folder of this training."""
        return Path(self.runs_dir) / self.name

    @property
    def folders(self) -> list[Path]:
        """The folders of stored episodes; a run stands for its own."""
        named = [self.trajectories] if isinstance(self.trajectories, str) else self.trajectories
        inside = [Path(name) / "trajectories" for name in named]
        return [within if within.is_dir() else Path(name) for name, within in zip(named, inside, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dicts, lists and scalars, as YAML takes them."""
        plain = asdict(self) | {"registry": self.registry.as_dict()}
        for name in ("trajectories", "hidden"):
            if isinstance(plain[name], tuple):
                plain[name] = list(plain[name])
        return plain

    def validate(self) -> None:
        """Raise UserError for the first value that cannot work."""
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise UserError(f"name={self.name!r}: give a folder name without '/' or a leading '.'")
        if not self.trajectories:
            raise UserError("trajectories is empty: give a folder of stored episodes, or a run that has one")
        for option, count in {
            "iterations": self.iterations,
            "updates_per_iteration": self.updates_per_iteration,
            "minibatch_size": self.minibatch_size,
            "torch_threads": self.torch_threads,
            "dpo.pairs_per_state": self.dpo.pairs_per_state,
        }.items():
            if count < 1:
                raise UserError(f"{option}={count}: give an integer >= 1")
        if self.num_cpus is not None and self.num_cpus < 1:
            raise UserError(f"num_cpus={self.num_cpus}: give an integer >= 1, or null")
        check_seed("seed", self.seed)
        if not self.hidden or any(width < 1 for width in self.hidden):
            raise UserError(f"hidden={list(self.hidden)}: give one or more widths >= 1")
        for option, value, low, high in (
            ("lr", self.lr, 0.0, 1.0),
            ("grad_clip", self.grad_clip, 0.0, math.inf),
            ("marwil.beta", self.marwil.beta, 0.0, 1.0 + 1e-9),  # RLlib takes no more than 1
            ("dpo.beta", self.dpo.beta, 0.0, 100.0),
        ):
            if not low < value < high:
                raise UserError(f"{option}={value}: give a number above {low:g}, at most {high:g}")
        for option, value, high in (
            ("held_out", self.held_out, 0.5),
            ("dpo.warmup_share", self.dpo.warmup_share, 0.9),
            ("dpo.margin", self.dpo.margin, 100.0),
            ("marwil.value_coeff", self.marwil.value_coeff, 100.0),
        ):
            if not 0.0 <= value <= high:
                raise UserError(f"{option}={value}: give a number from 0 to {high:g}")
        self.registry.validate()
