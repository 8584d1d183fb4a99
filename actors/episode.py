"""An episode: one image in the making, and the options that rule over it.

Always true here: an episode is one slot's whole state and owns its random numbers, so that its result
does not depend on the slots beside it. `level` says at which noise level `latents_CHW` stand; while the
state is "deciding", `clean_CHW` and `features_F` come from a denoiser call at exactly that level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from actors.contracts import (
    QUALITY_FEATURES,
    Conditioning,
    DecisionRecord,
    EpisodeRequest,
    EpisodeResult,
    Images,
)
from actors.errors import UserError
from actors.region_head import ACCEPTED as HEAD_ACCEPTED
from actors.regions import Region, RegionName
from actors.schedule import NoiseLevel, Schedule, SolverName, Spacing

if TYPE_CHECKING:
    from actors.refine import Refinement

EpisodeState = Literal["denoising", "deciding", "looking", "finished"]
GuidanceRule = Literal["cfg", "cfg++", "none"]
IMAGE_REWARD = QUALITY_FEATURES.index("image_reward")
ETA = "0, or with solver ddim up to 1"


@dataclass(frozen=True)
class EngineConfig:
    """Options of the decision process; costs and budgets are in NFE (denoiser calls)."""

    solver: SolverName = "dpmpp"
    num_steps: int = 10
    eta: float = 0.0
    """Share of DDPM's noise that DDIM adds in each step; 0 is deterministic."""
    guidance_rule: GuidanceRule = "cfg"
    """Classifier-free guidance; CFG++, whose scale is at most 1; or none, one network evaluation a step."""
    guidance_scale: float = 4.0
    warmup_steps: int = 3
    """Continues that are forced before the first decision."""
    stop_from: float = 0.0
    """How far along the schedule, 0 to 1, an image has to be before it may be returned."""
    actions: tuple[str, ...] = ("continue", "stop", "look", "restart", "leap-2", "refine")
    max_nfe: int = 40
    """Budget of an episode; a request may bring its own."""
    max_attempts: int = 4
    """How many noises an episode may try, the first included."""
    restart_needs_look: bool = False
    """Whether, where `look` is among the actions, only an image that was looked at is given up. What no
    look has judged cannot be chosen in the end, and a policy that learns soon shuns blind restarts, the
    seen ones with them."""
    refine_steps: int = 2
    refine_noise: float = 0.5
    """Refinement starts from this share of the present timestep."""
    refine_threshold: float = 0.5
    """Attention below this share of its maximum counts as under-generated; change counts as unsettled
    above one minus this share of its maximum. More is denoised again the higher it is."""
    refine_region: RegionName = "attention"
    """What tells where to denoise again; grid and random are controls that know nothing."""
    refine_grid: int = 4
    """Cells a side, for grid and random."""
    refine_share: float = 0.25
    """Share of those cells that one refinement denoises again."""
    refine_head: str | None = None
    """File of the network that learned asks; `python -m actors.region_training` makes it."""
    look_price: float = 0.3
    """Measured cost of decoding and scoring one preview."""
    max_decisions: int = 64
    timestep_spacing: Spacing | None = None
    """None: the spacing that the solver is published with."""
    timesteps: tuple[int, ...] | None = None
    """The schedule's own timesteps, num_steps of them from the noisiest down, in place of any spacing."""
    flow_shift: float | None = None
    """Timestep shift of flow-matching schedules; None: the one that the backbone's scheduler is set to."""

    def __post_init__(self) -> None:
        solvers, rules = get_args(SolverName), get_args(GuidanceRule)
        _accept("solver", self.solver, self.solver in solvers, "ddim, dpmpp, flow_euler or lcm")
        _accept("eta", self.eta, self.eta == 0.0 or (0.0 < self.eta <= 1.0 and self.solver == "ddim"), ETA)
        _accept("guidance_rule", self.guidance_rule, self.guidance_rule in rules, ", ".join(rules))
        spacings = (None, *get_args(Spacing))
        _accept("timestep_spacing", self.timestep_spacing, self.timestep_spacing in spacings, f"{spacings}")
        for option in (
            "num_steps",
            "max_nfe",
            "max_attempts",
            "refine_steps",
            "refine_grid",
            "max_decisions",
        ):
            _accept(option, getattr(self, option), getattr(self, option) >= 1, "a whole number from 1")
        warmup = f"a whole number from 0, below engine.num_steps ({self.num_steps})"
        _accept("warmup_steps", self.warmup_steps, 0 <= self.warmup_steps < self.num_steps, warmup)
        _accept("stop_from", self.stop_from, 0.0 <= self.stop_from <= 1.0, "a number from 0 to 1")
        for option in ("guidance_scale", "look_price"):
            value = getattr(self, option)
            _accept(option, value, math.isfinite(value) and value >= 0.0, "a number from 0")
        if self.guidance_rule == "cfg++":
            _accept("guidance_scale", self.guidance_scale, self.guidance_scale <= 1.0, "with cfg++ 0 to 1")
        for option in ("refine_noise", "refine_threshold", "refine_share"):
            value = getattr(self, option)
            _accept(option, value, 0.0 < value <= 1.0, "a number above 0 and up to 1")
        regions = get_args(RegionName)
        _accept("refine_region", self.refine_region, self.refine_region in regions, ", ".join(regions))
        headless = self.refine_region == "learned" and self.refine_head is None
        _accept("refine_head", None, not headless, f"with engine.refine_region=learned {HEAD_ACCEPTED}")
        times = self.timesteps
        descending = times is None or (
            len(times) == self.num_steps and min(times) >= 0 and sorted(set(times), reverse=True) == [*times]
        )
        _accept("timesteps", times, descending, f"{self.num_steps} whole numbers from 0, descending, or null")
        shift = self.flow_shift
        positive_shift = shift is None or (math.isfinite(shift) and shift > 0.0)
        _accept("flow_shift", shift, positive_shift, "a number above 0, or null")


def guidance_scales(actions: Sequence[str]) -> tuple[float, ...]:
    """The scales among the names of actions: w of every `guidance-w`."""
    return tuple(float(name.removeprefix("guidance-")) for name in actions if name.startswith("guidance-"))


def _accept(option: str, value: object, accepted: bool, what: str) -> None:
    if not accepted:
        raise UserError(f"engine.{option} is {value!r}; accepted: {what}")


@dataclass(frozen=True, eq=False)
class Candidate:
    """An image that a restart left behind, and how far along the schedule it had come (0 to 1)."""

    clean_CHW: torch.Tensor
    score: float | None
    progress: float


@dataclass(eq=False)
class Episode:
    """One image in the making; the engine and the actions change it, everybody else reads it."""

    request: EpisodeRequest
    config: EngineConfig
    schedule: Schedule
    conditioning: Conditioning
    """One row."""
    pooled_D: NDArray[np.float32]
    generator: torch.Generator
    latents_CHW: torch.Tensor
    clean_CHW: torch.Tensor
    features_F: torch.Tensor
    level: NoiseLevel
    state: EpisodeState = "denoising"
    step_index: int = 0
    target_index: int | None = None
    """The schedule point that the next denoiser call goes to; None: it is made where the latents stand."""
    history: tuple[torch.Tensor, NoiseLevel] | None = None
    """The clean prediction before this one and its level, at the last schedule point; gone after restart and
    refine. Multistep solvers extrapolate from it, and some regions compare with it."""
    null_clean_CHW: torch.Tensor | None = None
    """The clean prediction without the prompt, where the guidance rule renoises with it."""
    guidance_scale: float = 0.0
    """Strength of guidance from the next denoiser call on."""
    guidance_chosen: bool = False
    """Whether the scale was already chosen at this clean prediction."""
    extrapolated: bool = False
    """Whether the clean prediction was extrapolated, without a denoiser call."""
    attention_HW: torch.Tensor | None = None
    """Per position the highest attention that any word of the prompt gets; None if it was not recorded."""
    region: Region | None = None
    """Where a refinement denoises again; None where there is none to choose."""
    refinement: Refinement | None = None
    refinements: int = 0
    """How many were begun, all attempts together."""
    nfe: int = 0
    network_evals: int = 0
    looks: int = 0
    attempt: int = 1
    quality: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros(len(QUALITY_FEATURES), dtype=np.float32)
    )
    """The last look of this attempt, in the order of QUALITY_FEATURES; zeros until then. Only
    best_image_reward outlives a restart: it is the best image kept, the present one included."""
    last_look: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    looked_here: bool = False
    stopping: bool = False
    """Stop was chosen: the look under way says which image is returned."""
    candidates: list[Candidate] = field(default_factory=list)
    decisions: list[DecisionRecord] = field(default_factory=list)
    preview_images: list[Images] = field(default_factory=list)
    """One small image a decision, where a rollout was asked to record them."""

    @property
    def num_steps(self) -> int:
        """Points on the schedule."""
        return len(self.schedule)

    @property
    def timestep(self) -> float:
        """What the denoiser is told at the present level."""
        return self.level.timestep

    @property
    def max_nfe(self) -> int:
        """Denoiser calls that this episode may spend."""
        return self.request.max_nfe if self.request.max_nfe is not None else self.config.max_nfe

    @property
    def progress(self) -> float:
        """How far along the schedule the present attempt is, 0 to 1."""
        return self.step_index / (self.num_steps - 1) if self.num_steps > 1 else 1.0

    @property
    def looked_score(self) -> float | None:
        """The image reward of the present clean prediction, if it was looked at."""
        return float(self.quality[IMAGE_REWARD]) if self.looked_here else None

    @property
    def best_kept_score(self) -> float | None:
        """The highest image reward among the candidates that were looked at."""
        return max((kept.score for kept in self.candidates if kept.score is not None), default=None)

    @property
    def cost(self) -> float:
        """NFE and looks at their price, in units of one NFE."""
        return self.nfe + self.config.look_price * self.looks

    @property
    def finished(self) -> bool:
        """Whether the image is final."""
        return self.state == "finished"

    def affords(self, nfe: int) -> bool:
        """Whether the budget allows so many more denoiser calls."""
        return self.nfe + nfe <= self.max_nfe

    def fork(self) -> Episode:
        """The same episode once more: from here on each goes its own way, with the same random numbers.

        Tensors are shared; nobody changes one in place.
        """
        assert self.refinement is None, "a refinement under way cannot be forked"
        generator = torch.Generator()
        generator.set_state(self.generator.get_state())
        return replace(
            self,
            generator=generator,
            candidates=list(self.candidates),
            decisions=list(self.decisions),
            preview_images=list(self.preview_images),
        )

    def fresh_noise(self) -> torch.Tensor:
        """New noise in the latents' shape, drawn on the CPU so that a seed means the same everywhere."""
        noise_CHW = torch.randn(self.latents_CHW.shape, generator=self.generator)
        return noise_CHW.to(self.latents_CHW.device)

    @property
    def rivals(self) -> list[tuple[float, torch.Tensor]]:
        """Score and latents of the kept candidates that may be returned instead of the present image.

        They were looked at, no earlier in the schedule: a preview is not better for a higher score.
        """
        return [
            (kept.score, kept.clean_CHW)
            for kept in self.candidates
            if kept.score is not None and kept.progress >= self.progress
        ]

    def finish(self) -> None:
        """End with the best image: of the present one, if it was looked at, and its rivals."""
        best = self.looked_score
        if best is not None:
            for score, clean_CHW in self.rivals:
                if score > best:
                    best, self.clean_CHW = score, clean_CHW
        self.state = "finished"

    def result(self) -> EpisodeResult:
        """What the episode came to; only once it has finished."""
        assert self.finished, f"{self.request} is still {self.state}"
        return EpisodeResult(
            request=self.request,
            latents_CHW=self.clean_CHW.clone(),
            nfe=self.nfe,
            network_evals=self.network_evals,
            looks=self.looks,
            attempts=self.attempt,
            cost=self.cost,
            decisions=tuple(self.decisions),
            preview_images=tuple(self.preview_images),
        )
