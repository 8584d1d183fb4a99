"""What an engineer would use instead of a policy: fixed schedules, and the best of a few of them.

Always true here: a baseline runs through the same engine as the policy, as a Decider and an EngineConfig,
so its NFE, looks and images come about in exactly the same way. It knows no prompt and is never tuned on
one. An `oracle-` baseline chooses by the metric it is judged with: a bound, which no one could deploy.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actors.contracts import Decider
from actors.engine import EngineConfig
from actors.errors import UserError
from actors.schedule import SolverName

if TYPE_CHECKING:
    from actors.engine import Episode

DEFAULT_BASELINES = (
    *(f"ddim-{steps}" for steps in (20, 50)),
    *(f"dpmpp-{steps}" for steps in (5, 7, 10, 15, 20)),
    "best-of-2@5",
    *(f"best-of-{attempts}@7" for attempts in (2, 3, 4)),
    "best-of-2@10",
)
_NAMES = "ddim-N, dpmpp-N, euler-N, lcm-N, best-of-K@N or oracle-best-of-K@N"
ACCEPTED = f"{_NAMES} with N from 2 to 1000 and K from 2 to 100"

SOLVERS: dict[str, SolverName] = {"ddim": "ddim", "dpmpp": "dpmpp", "euler": "flow_euler", "lcm": "lcm"}
"""By the first part of a baseline's name."""

_FIXED = re.compile(r"(ddim|dpmpp|euler|lcm)-(\d{1,4})")
_BEST_OF = re.compile(r"(oracle-)?best-of-(\d{1,3})@(\d{1,4})")


@dataclass(frozen=True, slots=True)
class Baseline:
    """One fixed way to make an image: a solver, its steps, and how many attempts it chooses from."""

    name: str
    solver: SolverName
    num_steps: int
    attempts: int = 1
    oracle: bool = False

    def engine_config(self, policy: EngineConfig) -> EngineConfig:
        """The engine it runs on, with the policy's guidance and, where it looks, the policy's price of that.

        What an option cannot change is left at its default, so that a change of it reuses the rows. Where the
        policy steps as its model was distilled for (lcm, or ddim with noise), attempts do too.
        """
        distilled = policy.solver == "lcm" or policy.eta > 0.0
        solver = policy.solver if self.attempts > 1 and distilled else self.solver
        own = distilled and solver == policy.solver
        return EngineConfig(
            solver=solver,
            eta=policy.eta if own else 0.0,
            timestep_spacing=policy.timestep_spacing if own else None,
            num_steps=self.num_steps,
            guidance_rule=policy.guidance_rule,
            guidance_scale=policy.guidance_scale,
            flow_shift=policy.flow_shift,
            warmup_steps=min(1, self.num_steps - 1),
            actions=("continue", "stop") if self.attempts == 1 else ("continue", "stop", "look", "restart"),
            max_nfe=self.attempts * self.num_steps,
            max_attempts=self.attempts,
            look_price=policy.look_price if self.attempts > 1 else 0.0,
            max_decisions=self.attempts * (self.num_steps + 2),
        )

    def decider(self, action_names: Sequence[str]) -> Decider:
        """Its fixed rule, in terms of an engine's action indices."""
        return ContinueDecider(action_names) if self.attempts == 1 else BestOfDecider(action_names)


class ContinueDecider:
    """Continues to the end of the schedule, then stops."""

    def __init__(self, action_names: Sequence[str]) -> None:
        self._preference = [action_names.index(name) for name in ("continue", "stop")]

    def __call__(
        self, episodes: Sequence[Episode], observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """An action index for each episode."""
        return _first_legal(mask_BA, self._preference)


class BestOfDecider:
    """Ends every attempt, looks at it, restarts while it may; the engine returns the best it looked at."""

    def __init__(self, action_names: Sequence[str]) -> None:
        self._preference = [action_names.index(name) for name in ("continue", "look", "restart", "stop")]

    def __call__(
        self, episodes: Sequence[Episode], observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """An action index for each episode."""
        return _first_legal(mask_BA, self._preference)


def parse_baseline(name: str) -> Baseline:
    """The baseline of this name; UserError for a name that is none."""
    if match := _FIXED.fullmatch(name):
        baseline = Baseline(name, SOLVERS[match[1]], int(match[2]))
    elif match := _BEST_OF.fullmatch(name):
        baseline = Baseline(name, "dpmpp", int(match[3]), int(match[2]), oracle=match[1] is not None)
    else:
        raise UserError(f"evaluation.baselines={name!r}: accepted are {ACCEPTED}")
    attempts_allowed = range(2, 101) if "best-of" in name else range(1, 2)
    if baseline.num_steps not in range(2, 1001) or baseline.attempts not in attempts_allowed:
        raise UserError(f"evaluation.baselines={name!r}: accepted are {ACCEPTED}")
    return baseline


def check_baselines(names: Sequence[str], policy: EngineConfig) -> None:
    """UserError for a baseline that cannot run on the kind of model that the policy's solver is for."""
    flow = policy.solver == "flow_euler"
    for name in names:
        solver = parse_baseline(name).solver
        if (flow and solver in ("ddim", "lcm")) or (
            policy.solver in ("ddim", "lcm") and solver == "flow_euler"
        ):
            accepted = "euler-N, dpmpp-N or best-of-K@N" if flow else "ddim-N, dpmpp-N, lcm-N or best-of-K@N"
            raise UserError(
                f"evaluation.baselines={name!r}: accepted with engine.solver={policy.solver}: {accepted}"
            )


def config_hash(config: EngineConfig) -> str:
    """Ten hex digits that differ whenever any engine option differs."""
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:10]


def _first_legal(mask_BA: NDArray[np.bool_], preference: Sequence[int]) -> NDArray[np.int64]:
    """The first action of `preference` that is legal, for each episode."""
    ordered_BK = mask_BA[:, preference]
    assert ordered_BK.any(1).all(), "the engine left no action of this baseline legal"
    choices_B: NDArray[np.int64] = np.asarray(preference, dtype=np.int64)[ordered_BK.argmax(1)]
    return choices_B
