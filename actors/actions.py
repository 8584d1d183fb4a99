"""The actions of the decision process, each its own small unit: when it is possible, what it costs, what
it does.

Always true here: an action changes nothing but the episode it is given and never calls the denoiser. It only
says what the next batched denoiser call is to do; budget and warm-up rules stand in `legal_row`, once
for all actions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from actors.contracts import QUALITY_FEATURES
from actors.episode import Candidate, EngineConfig, Episode
from actors.errors import UserError
from actors.refine import inner_timesteps, make_refinement
from actors.regions import region_mask

ACCEPTED = "continue, stop, refine, look, restart, reuse, leap-2, leap-3, ..., guidance-3, ..."


class Action(Protocol):
    """One thing a policy can choose."""

    @property
    def name(self) -> str:
        """As in the configuration, in observations' masks and in reports."""
        ...

    def nfe(self, config: EngineConfig) -> int:
        """Denoiser calls until the next decision."""
        ...

    def possible(self, episode: Episode) -> bool:
        """Whether it means anything here, budget and warm-up aside."""
        ...

    def apply(self, episode: Episode) -> None:
        """Set the episode on its way."""
        ...


@dataclass(frozen=True)
class Advance:
    """`continue` (span 1) and `leap-k`: one solver step over `span` schedule points, then a denoiser call."""

    span: int = 1

    @property
    def name(self) -> str:
        """`continue` or `leap-k`."""
        return "continue" if self.span == 1 else f"leap-{self.span}"

    def nfe(self, config: EngineConfig) -> int:
        """One, however wide the step."""
        return 1

    def possible(self, episode: Episode) -> bool:
        """Not past the last schedule point."""
        return episode.step_index + self.span < episode.num_steps

    def apply(self, episode: Episode) -> None:
        """Aim at the schedule point; the step itself is taken for the whole batch at once."""
        episode.target_index = episode.step_index + self.span
        episode.state = "denoising"


@dataclass(frozen=True)
class Stop:
    """Return the clean prediction, or a kept one that a look found better.

    Where a kept one could be better and this one was not looked at, it is first, at the price of a look.
    """

    name: str = "stop"

    def nfe(self, config: EngineConfig) -> int:
        """Nothing more."""
        return 0

    def possible(self, episode: Episode) -> bool:
        """At every decision."""
        return True

    def apply(self, episode: Episode) -> None:
        """Finish, or wait for the scores that say which image is returned."""
        if episode.looked_here or not episode.rivals:
            episode.finish()
        else:
            episode.stopping, episode.state = True, "looking"


@dataclass(frozen=True)
class Look:
    """Have a small preview scored; the quality vector is observed from then on."""

    name: str = "look"

    def nfe(self, config: EngineConfig) -> int:
        """No denoiser call; the price is part of the episode's cost."""
        return 0

    def possible(self, episode: Episode) -> bool:
        """Once for each clean prediction."""
        return not episode.looked_here

    def apply(self, episode: Episode) -> None:
        """Wait for the scores."""
        episode.state = "looking"


@dataclass(frozen=True)
class Restart:
    """Keep what there is as a candidate and begin again from new noise."""

    name: str = "restart"

    def nfe(self, config: EngineConfig) -> int:
        """The first evaluation of the new attempt."""
        return 1

    def possible(self, episode: Episode) -> bool:
        """While attempts are left; of an image that was looked at, where the configuration asks for it."""
        config = episode.config
        blind = config.restart_needs_look and "look" in config.actions and not episode.looked_here
        return episode.attempt < config.max_attempts and not blind

    def apply(self, episode: Episode) -> None:
        """Forget the trajectory; of the looks, only the best score of an image kept stays known."""
        candidate = Candidate(episode.clean_CHW, episode.looked_score, episode.progress)
        episode.candidates.append(candidate)
        episode.quality = np.zeros_like(episode.quality)
        episode.quality[QUALITY_FEATURES.index("best_image_reward")] = episode.best_kept_score or 0.0
        episode.last_look = {}
        episode.latents_CHW = episode.fresh_noise()
        episode.level = episode.schedule.points[0]
        episode.step_index, episode.target_index, episode.history = 0, None, None
        episode.guidance_scale = episode.config.guidance_scale
        episode.attempt += 1
        episode.state = "denoising"


@dataclass(frozen=True)
class Reuse:
    """One schedule step without a denoiser call: the clean prediction goes on as it did (as in SADA).

    Jiang et al. 2025 (SADA) decide by a stability criterion when that is safe; here the policy does.
    """

    name: str = "reuse"

    def nfe(self, config: EngineConfig) -> int:
        """No denoiser call."""
        return 0

    def possible(self, episode: Episode) -> bool:
        """With two predictions of the network behind it and a schedule point ahead; never twice in a row."""
        ahead = episode.step_index + 1 < episode.num_steps
        return ahead and episode.history is not None and not episode.extrapolated

    def apply(self, episode: Episode) -> None:
        """Aim at the next schedule point; the engine goes there without asking the denoiser."""
        episode.target_index = episode.step_index + 1


@dataclass(frozen=True)
class Guide:
    """`guidance-w`: guidance scale w from the next denoiser call on."""

    scale: float

    @property
    def name(self) -> str:
        """`guidance-w`."""
        return f"guidance-{self.scale:g}"

    def nfe(self, config: EngineConfig) -> int:
        """No denoiser call; the episode decides again at once."""
        return 0

    def possible(self, episode: Episode) -> bool:
        """To another scale than the present one, once at a clean prediction, while a call is to come."""
        ahead = episode.step_index + 1 < episode.num_steps
        return ahead and not episode.guidance_chosen and episode.guidance_scale != self.scale

    def apply(self, episode: Episode) -> None:
        """Set the scale; a restart takes it back."""
        episode.guidance_scale, episode.guidance_chosen = self.scale, True

    def check(self, config: EngineConfig) -> None:
        """UserError where the guidance rule has no such scale."""
        if config.guidance_rule == "none" or (config.guidance_rule == "cfg++" and self.scale > 1.0):
            what = "no guidance-w" if config.guidance_rule == "none" else "guidance-w with w up to 1"
            raise UserError(
                f"engine.actions has {self.name!r}; accepted with engine.guidance_rule"
                f" {config.guidance_rule!r}: {what}"
            )


@dataclass(frozen=True)
class Refine:
    """RegionRefine (see refine.py), then on to the next schedule point."""

    name: str = "refine"

    def nfe(self, config: EngineConfig) -> int:
        """The inner calls and the one at the next schedule point."""
        return 1 + config.refine_steps

    def possible(self, episode: Episode) -> bool:
        """Where there is a next point, and the region can be told."""
        told = episode.region is not None and episode.region.possible(episode)
        return told and episode.step_index + 1 < episode.num_steps

    def apply(self, episode: Episode) -> None:
        """Mask, and noise the clean prediction for the first inner call."""
        assert episode.region is not None, "refine without a region"
        config, schedule = episode.config, episode.schedule
        timesteps = inner_timesteps(episode.timestep, config.refine_noise, config.refine_steps)
        fresh_noise_CHW = episode.fresh_noise()  # drawn first: the same whatever the region draws
        refinement = make_refinement(
            region_mask(episode.region, episode),
            episode.latents_CHW,
            episode.clean_CHW,
            fresh_noise_CHW,
            episode.level,
            tuple(schedule.level_at(timestep) for timestep in timesteps),
        )
        episode.refinement, episode.history = refinement, None
        episode.refinements += 1
        episode.latents_CHW, episode.level = refinement.start(), refinement.level
        episode.state = "denoising"


def make_actions(names: Sequence[str]) -> tuple[Action, ...]:
    """The actions of a configuration, in its order.

    Raises UserError for a name that is unknown or given twice, and for a set that can only dead-end.
    """
    if not names or len(set(names)) != len(names):
        raise UserError(f"engine.actions is {list(names)}; accepted: some of {ACCEPTED}, each once")
    actions = tuple(_make_action(name) for name in names)
    if not any(isinstance(action, Advance) for action in actions):
        raise UserError(f"engine.actions is {list(names)}; accepted: with continue or a leap among them")
    return actions


def _make_action(name: str) -> Action:
    simple: dict[str, Action] = {
        action.name: action for action in (Advance(), Stop(), Look(), Restart(), Refine(), Reuse())
    }
    if name in simple:
        return simple[name]
    prefix, _, span = name.partition("-")
    if prefix == "leap" and span.isdecimal() and int(span) >= 2:
        return Advance(int(span))
    if prefix == "guidance" and (scale := _number(span)) is not None:
        return Guide(scale)
    raise UserError(f"engine.actions has {name!r}; accepted: {ACCEPTED}")


def _number(text: str) -> float | None:
    """A plain decimal number above 0, or None."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0.0 else None


def legal_row(actions: Sequence[Action], episode: Episode) -> list[bool]:
    """Which actions the episode may take now; all False once nothing is left but to end.

    The last of max_decisions is a stop. While the budget allows a step along the schedule, the warm-up of a
    later attempt allows nothing else (the first attempt's is no decision at all), and stop waits for
    `stop_from`.
    """
    config = episode.config
    row = [action.possible(episode) and episode.affords(action.nfe(config)) for action in actions]
    if len(episode.decisions) + 1 >= config.max_decisions:
        return [legal and isinstance(action, Stop) for legal, action in zip(row, actions, strict=True)]
    steps = [legal and isinstance(action, Advance) for legal, action in zip(row, actions, strict=True)]
    if not any(steps):
        return row
    if episode.attempt > 1 and episode.step_index < config.warmup_steps:
        return steps
    if episode.progress < config.stop_from:
        return [legal and not isinstance(action, Stop) for legal, action in zip(row, actions, strict=True)]
    return row
