"""A baseline on a bench: which sampler its family is.

Always true here: a scorer is one that the bench has, a backbone one that the method can run on; anything else
is one line before the first image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actors.contracts import Images, QualityScorer
from actors.engine import Engine, EngineConfig
from actors.errors import UserError
from actors.observations import ObservationConfig, ObservationSizes, Observer
from evaluation.baselines.adadiff import StepCountSampler
from evaluation.baselines.attention_guidance import ATTENTION_GUIDANCE, PipelineSampler
from evaluation.baselines.names import FAMILIES, SCHEDULERS, Baseline
from evaluation.baselines.oracles import OracleStepsSampler, OracleStopSampler
from evaluation.baselines.rules import BestOfDecider, ContinueDecider, RefineDecider, StableDecider
from evaluation.baselines.schedulers import SchedulerSampler
from evaluation.baselines.search import SearchSampler
from evaluation.baselines.steering import FeynmanKac
from evaluation.baselines.tree_search import TreeSearch
from evaluation.bench import Bench
from evaluation.methods import OpenMethod, Sampler

if TYPE_CHECKING:
    from actors.contracts import Decider


def open_baseline(baseline: Baseline, config: EngineConfig, bench: Bench) -> Sampler:
    """The sampler; UserError for a backbone or a scorer that does not fit."""
    flow = bench.backbone.prediction_type == "flow"
    model = FAMILIES[baseline.family].model
    if flow and model in ("diffusion", "stable diffusion"):
        raise UserError(f"baseline {baseline.name!r}: accepted on models that are no flow")
    match baseline.family:
        case "oracle-stop":
            return OracleStopSampler(rule(baseline, config, bench), bench)
        case "oracle-n":
            return OracleStepsSampler(baseline, config, bench)
        case "fk":
            search = FeynmanKac(particles=baseline.attempts)
            return SearchSampler(Engine(bench.backbone, config), search, named_scorer(bench, baseline))
        case "dts":
            tree = TreeSearch(budget=baseline.nominal_nfe)
            return SearchSampler(Engine(bench.backbone, config), tree, named_scorer(bench, baseline))
        case "adadiff":
            assert baseline.file is not None
            return StepCountSampler(baseline.file, config, bench)
        case family if family in ATTENTION_GUIDANCE:
            return PipelineSampler(baseline, config, bench)
        case family if family in SCHEDULERS and not (family == "euler" and flow):
            return SchedulerSampler(family, baseline.num_steps, config, bench.backbone)
    return rule(baseline, config, bench)


def rule(baseline: Baseline, config: EngineConfig, bench: Bench) -> OpenMethod:
    """A fixed rule in the engine. It observes next to nothing, so that its seconds are its own."""
    engine = Engine(bench.backbone, config)
    sizes = ObservationSizes(bench.backbone.feature_dim, bench.backbone.text_dim)
    observer = Observer(ObservationConfig("timestep", False), sizes, engine.action_names)
    scorer = None
    if baseline.family == "oracle-best-of":
        scorer = bench.oracle
    elif baseline.family == "best-of":
        scorer = named_scorer(bench, baseline)
    return OpenMethod(engine, observer, _decider(baseline, engine.action_names), scorer)


def named_scorer(bench: Bench, baseline: Baseline) -> QualityScorer:
    """What the method chooses by, under the name that the engine knows; UserError if the bench has none."""
    output = baseline.scorer
    if output not in bench.scores:
        raise UserError(
            f"baseline {baseline.name!r}: no score called {output!r}; accepted: {', '.join(bench.scores)}"
        )
    scorer = bench.scorer(output)

    def score(images: Images, prompts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        return {"image_reward": scorer(images, prompts)[output]}

    return score


def _decider(baseline: Baseline, action_names: Sequence[str]) -> Decider:
    match baseline.family:
        case "best-of" | "oracle-best-of":
            return BestOfDecider(action_names)
        case "stable":
            return StableDecider(action_names, baseline.number)
        case "refine":
            return RefineDecider(action_names)
    return ContinueDecider(action_names)
