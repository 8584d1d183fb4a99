"""Baselines without a policy: made, scored and kept like an evaluation's.

Always true here: an evaluation of the same bench and options finds these images and makes none of them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from actors.backbones.config import BackboneConfig
from actors.contracts import EpisodeRequest
from actors.engine import EngineConfig
from evaluation.baselines import check_baselines, parse_baseline
from evaluation.bench import bench_recipe
from evaluation.config import EvaluationConfig
from evaluation.evaluate import Recipe, evaluation_requests, image_store, images_of
from evaluation.methods import BaselineMethod
from evaluation.progress import Progress
from evaluation.rows import ImageRow, tabulate
from evaluation.statistics import Resampling
from evaluation.tables import Table


def run_baselines(
    names: Sequence[str],
    engine: EngineConfig,
    backbone: BackboneConfig,
    config: EvaluationConfig,
    runs_dir: Path,
    progress: Progress | None = None,
    *,
    recipe: Recipe = bench_recipe,
) -> tuple[dict[str, list[ImageRow]], Table]:
    """Rows of each, and a table of their means.

    engine: whose guidance, price of a look and noise rules they take. Raises UserError for names, prompts or
    a backbone that cannot be used.
    """
    config = replace(config, baselines=tuple(names))
    check_baselines(names, engine)
    requests = evaluation_requests(config)
    open_bench = recipe(backbone, config)
    bench = open_bench()
    methods = [BaselineMethod(one, one.engine_config(engine)) for one in map(parse_baseline, names)]
    for method in methods:
        method.open(bench)
    store = image_store(runs_dir, bench, config)
    opener = open_bench if config.workers > 1 else lambda: bench
    made, _ = images_of(methods, requests, store, opener, config, progress)
    rows = {method.name: found for method, found in zip(methods, made, strict=True)}
    return rows, summary_table(rows, requests, config, bench.metric)


def summary_table(
    rows: dict[str, list[ImageRow]],
    requests: Sequence[EpisodeRequest],
    config: EvaluationConfig,
    metric: str,
) -> Table:
    """Means over prompts, with the interval of quality."""
    strata = tuple(request.tier or "" for request in requests[:: config.seeds])
    resampling = Resampling(len(strata), config.resamples, config.seed, strata)
    lines = []
    for name, found in rows.items():
        table = tabulate(name, found, requests)
        quality = resampling.mean(table.by_prompt("quality"))
        bound = " (bound)" if parse_baseline(name).oracle else ""
        means = [table.mean(column) for column in ("nfe", "network_evals", "looks", "cost")]
        lines.append(
            (
                name + bound,
                f"{quality.value:.3f}",
                f"{quality.low:.3f} to {quality.high:.3f}",
                f"{np.mean([row.image_reward for row in found]):.3f}",
                *(f"{mean:.2f}" for mean in means),
                f"{table.mean('seconds'):.3f}",
            )
        )
    header = ("method", "quality", "95%", "image reward", "NFE", "network evals", "looks", "cost", "seconds")
    return Table(f"Quality is the {metric}; {len(requests)} images a method", header, lines)
