"""Baselines by name: what an engineer would use instead of a policy, bounds, and methods of the literature.

Always true here: a name says everything about a method but the guidance, the price of a look and the noise
rules, which are the policy's; it knows no prompt. An `oracle-` method chooses by the metric it is judged
with: a bound, which no one could deploy. Nothing is loaded here: `opening.open_baseline` makes a method of
a name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from actors.engine import EngineConfig
from actors.errors import UserError
from actors.schedule import SolverName

DEFAULT_BASELINES = (
    *(f"ddim-{steps}" for steps in (20, 50)),
    *(f"dpmpp-{steps}" for steps in (5, 7, 10, 15, 20)),
    "best-of-2@5",
    *(f"best-of-{attempts}@7" for attempts in (2, 3, 4)),
    "best-of-2@10",
)

ENGINE_SOLVERS: dict[str, SolverName] = {
    "ddim": "ddim",
    "dpmpp": "dpmpp",
    "euler": "flow_euler",
    "lcm": "lcm",
}
"""The engine's own solvers, by the first part of a baseline's name."""
OWN_FAMILY: dict[SolverName, str] = {solver: family for family, solver in ENGINE_SOLVERS.items()}
"""Fixed schedules by the solver of a policy; of a distilled model they take its noise rules too."""
SCHEDULERS = ("dpm", "unipc", "pndm", "deis", "euler")
"""Solvers that are diffusers' own; of flow models, Euler is the engine's."""

ModelKind = Literal["diffusion", "flow", "any", "stable diffusion"]


@dataclass(frozen=True, slots=True)
class Family:
    """Baselines whose names have one form. model: what kind of backbone they run on."""

    form: str
    pattern: re.Pattern[str]
    what: str
    model: ModelKind = "any"
    bound: bool = False


def _family(form: str, pattern: str, what: str, model: ModelKind = "any", *, bound: bool = False) -> Family:
    return Family(form, re.compile(pattern), what, model, bound)


_N = r"(?P<steps>\d{1,4})"
_K = r"(?P<attempts>\d{1,3})"
_SCORER = r"(?::(?P<scorer>[a-z][a-z0-9_]*))?"
FAMILIES: dict[str, Family] = {
    "ddim": _family("ddim-N", f"ddim-{_N}", "DDIM (arXiv 2010.02502)", "diffusion"),
    "dpmpp": _family("dpmpp-N", f"dpmpp-{_N}", "DPM-Solver++(2M) (arXiv 2211.01095)"),
    "dpm": _family("dpm-N", f"dpm-{_N}", "DPM-Solver, second order (arXiv 2206.00927)", "diffusion"),
    "euler": _family("euler-N", f"euler-{_N}", "Euler steps of the ODE, of diffusion or of flow"),
    "unipc": _family("unipc-N", f"unipc-{_N}", "UniPC (arXiv 2302.04867)", "diffusion"),
    "pndm": _family(
        "pndm-N", f"pndm-{_N}", "PNDM, linear multistep; N + 1 calls (arXiv 2202.09778)", "diffusion"
    ),
    "deis": _family("deis-N", f"deis-{_N}", "DEIS, exponential integrator (arXiv 2204.13902)", "diffusion"),
    "lcm": _family("lcm-N", f"lcm-{_N}", "latent consistency sampling, for distilled models", "diffusion"),
    "best-of": _family(
        "best-of-K@N[:SCORER]",
        f"best-of-{_K}@{_N}{_SCORER}",
        "K tries of N steps, the one a scorer likes best (random search)",
    ),
    "refine": _family("refine@N", f"refine@{_N}", "N steps, refined once in the middle as the policy would"),
    "stable": _family(
        "stable-E@N",
        rf"stable-(?P<number>0?\.\d{{1,4}})@{_N}",
        "a call is left out where the last prediction was foreseen within E (after SADA, arXiv 2507.17135)",
    ),
    "fk": _family(
        "fk-K@N[:SCORER]",
        f"fk-{_K}@{_N}{_SCORER}",
        "Feynman-Kac steering of K particles of N steps (arXiv 2501.06848)",
        "diffusion",
    ),
    "dts": _family(
        "dts-K@N[:SCORER]",
        f"dts-{_K}@{_N}{_SCORER}",
        "greedy diffusion tree search within K * N calls (arXiv 2506.20701)",
        "diffusion",
    ),
    "sag": _family("sag-N", f"sag-{_N}", "self-attention guidance (arXiv 2210.00939)", "stable diffusion"),
    "attend-excite": _family(
        "attend-excite-N",
        f"attend-excite-{_N}",
        "Attend-and-Excite on the prompt's content words (arXiv 2301.13826)",
        "stable diffusion",
    ),
    "adadiff": _family(
        "adadiff@FILE",
        r"adadiff@(?P<file>.+\.safetensors)",
        "a step count chosen from the prompt alone; FILE: `baselines fit-adadiff` (arXiv 2311.14768)",
    ),
    "oracle-best-of": _family(
        "oracle-best-of-K@N",
        f"oracle-best-of-{_K}@{_N}",
        "the best of K tries by the metric itself",
        bound=True,
    ),
    "oracle-stop": _family(
        "oracle-stop@SOLVER-N",
        rf"oracle-stop@(?P<solver>ddim|dpmpp|euler)-{_N}",
        "each image stopped where the metric is highest",
        bound=True,
    ),
    "oracle-n": _family(
        "oracle-n@SOLVER-N",
        rf"oracle-n@(?P<solver>ddim|dpmpp|euler)-{_N}",
        "for each image the step count, up to N, with the highest metric",
        bound=True,
    ),
}
"""By what names begin with, in the order they are listed in."""

ACCEPTED = (
    f"{', '.join(family.form for family in FAMILIES.values())}, with N from 2 to 1000 and K from 2 to 100"
)
STEP_GRID = (2, 3, 4, 5, 7, 10, 15, 20, 30, 50)
"""The step counts that Oracle-N chooses from, up to its own."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """One method that is no policy: its family, its steps, and how many attempts it chooses from.

    solver is the engine's (or a placeholder, where diffusers steps); number is the tolerance of `stable`;
    file is absolute, because a worker that opens it may have another working directory.
    """

    name: str
    family: str
    solver: SolverName
    num_steps: int = 2
    attempts: int = 1
    scorer: str = "image_reward"
    number: float = 0.0
    file: str | None = None

    @property
    def oracle(self) -> bool:
        """Whether it is a bound."""
        return FAMILIES[self.family].bound

    @property
    def nominal_nfe(self) -> int:
        """NFE that its name tells, at most or about: K * N."""
        return self.attempts * self.num_steps

    def engine_config(self, policy: EngineConfig) -> EngineConfig:
        """The engine it runs on, with the policy's guidance and, where it looks, the policy's price of that.

        What an option cannot change is left at its default, so that a change of it reuses the rows. Where the
        policy steps as its model was distilled for (lcm, or ddim with noise), attempts do too.
        """
        distilled = policy.solver == "lcm" or policy.eta > 0.0
        solver = policy.solver if self.family.endswith("best-of") and distilled else self.solver
        own = distilled and solver == policy.solver
        stochastic = self.family in ("fk", "dts")
        looks = self.attempts > 1
        options = EngineConfig(
            solver=solver,
            eta=1.0 if stochastic else policy.eta if own else 0.0,
            timestep_spacing=policy.timestep_spacing if own else None,
            num_steps=self.num_steps,
            guidance_rule=policy.guidance_rule,
            guidance_scale=policy.guidance_scale,
            flow_shift=policy.flow_shift,
            warmup_steps=0 if stochastic or self.family == "oracle-stop" else min(1, self.num_steps - 1),
            actions=_ACTIONS.get(self.family, ("continue", "stop")),
            max_nfe=self.nominal_nfe + (policy.refine_steps if self.family == "refine" else 0),
            max_attempts=self.attempts,
            look_price=policy.look_price if looks else 0.0,
            max_decisions=self.attempts * (self.num_steps + 2),
        )
        return _with_refinement(options, policy) if self.family == "refine" else options


_ACTIONS: dict[str, tuple[str, ...]] = {
    "best-of": ("continue", "stop", "look", "restart"),
    "oracle-best-of": ("continue", "stop", "look", "restart"),
    "refine": ("continue", "stop", "refine"),
    "stable": ("continue", "stop", "reuse"),
}


def _with_refinement(options: EngineConfig, policy: EngineConfig) -> EngineConfig:
    """Refining as the policy's engine does it."""
    named = [field.name for field in fields(EngineConfig) if field.name.startswith("refine_")]
    return replace(options, **{name: getattr(policy, name) for name in named})


def parse_baseline(name: str) -> Baseline:
    """The baseline of this name; UserError for a name that is none."""
    matches = ((key, family.pattern.fullmatch(name)) for key, family in FAMILIES.items())
    key, match = next(((key, match) for key, match in matches if match), ("", None))
    if match is None:
        raise UserError(f"evaluation.baselines={name!r}: accepted are {ACCEPTED}")
    found = match.groupdict()
    own_solver = found.get("solver") or key
    solver = ENGINE_SOLVERS.get(own_solver, "ddim" if key in ("fk", "dts") else "dpmpp")
    baseline = Baseline(
        name=name,
        family=key,
        solver=solver,
        num_steps=int(found.get("steps") or 2),
        attempts=int(found.get("attempts") or 1),
        scorer=found.get("scorer") or "image_reward",
        number=float(found.get("number") or 0.0),
        file=str(Path(found["file"]).absolute()) if "file" in found else None,
    )
    attempts_allowed = range(2, 101) if "attempts" in found else range(1, 2)
    if baseline.num_steps not in range(2, 1001) or baseline.attempts not in attempts_allowed:
        raise UserError(f"evaluation.baselines={name!r}: accepted are {ACCEPTED}")
    return baseline


def check_baselines(names: Sequence[str], policy: EngineConfig) -> None:
    """UserError for a baseline that cannot run on the kind of model that the policy's solver is for."""
    if policy.solver == "dpmpp":
        return  # of either kind; the backbone itself says which when the baseline is opened
    flow = policy.solver == "flow_euler"
    for name in names:
        baseline = parse_baseline(name)
        kind = FAMILIES[baseline.family].model
        on_flow = kind in ("any", "flow") and baseline.solver not in ("ddim", "lcm")
        on_diffusion = baseline.family == "euler" or baseline.solver != "flow_euler"
        if not (on_flow if flow else on_diffusion):
            accepted = "euler-N, dpmpp-N or best-of-K@N" if flow else "ddim-N, dpmpp-N, lcm-N or best-of-K@N"
            raise UserError(
                f"evaluation.baselines={name!r}: accepted with engine.solver={policy.solver}: {accepted}"
            )
