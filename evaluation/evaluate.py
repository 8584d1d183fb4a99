"""The evaluation of one policy: from its folder to summary.json and the files the report is made of.

Always true here: policy and baselines see the same prompts with the same seeds. summary.json is written
last and as a whole, so where it is, everything it speaks of is there too. The same weights and options give
the same summary, but for its seconds.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.backbones.config import BackboneConfig
from actors.contracts import EpisodeRequest
from actors.errors import UserError
from actors.files import written_aside
from evaluation.baselines import parse_baseline
from evaluation.bench import Bench, bench_recipe
from evaluation.cache import BaselineCache
from evaluation.config import EvaluationConfig
from evaluation.generate import Job, generate, jobs_of, run_jobs
from evaluation.methods import BaselineMethod, Method, PolicyMethod, read_policy
from evaluation.progress import Progress
from evaluation.rows import IMAGES_FILE, ImageRow, tabulate, write_rows
from evaluation.strips import STRIPS_FILE, pick, strip, write_strips
from evaluation.summary import SUMMARY_FILE, SUMMARY_KEYS, action_shares, compare

CACHE_FOLDER = "baselines"

TIERS_OF_SHAPES = 4


def evaluate(
    policy_dir: Path,
    run_dir: Path,
    config: EvaluationConfig,
    progress: Progress | None = None,
    *,
    model_version: str | None = None,
    recipe: Callable[[BackboneConfig, EvaluationConfig], Callable[[], Bench]] = bench_recipe,
) -> dict[str, Any]:
    """Compare the policy in policy_dir with the baselines; writes into run_dir and returns the summary.

    Baselines are kept beside run_dir and reused. `recipe` says how a backbone's bench is opened.
    Raises UserError for prompts, a policy or a backbone that cannot be used.
    """
    start = time.perf_counter()
    policy = read_policy(policy_dir, greedy=config.greedy, seed=config.seed)
    requests = evaluation_requests(config)
    open_bench = recipe(policy.trained.backbone, config)
    bench = open_bench()
    policy.open(bench)  # whatever does not fit together is said before the first image
    baselines = baseline_methods(policy, config)
    cache = BaselineCache(run_dir.parent / CACHE_FOLDER, bench.identity)
    rows = {method.name: cache.known(method, requests) for method in baselines}
    reused = sum(len(known) for known in rows.values())
    rows[policy.name] = []
    jobs = _missing_jobs((policy, *baselines), requests, rows, config.slots)
    total, done = sum(len(job.requests) for job in jobs), 0
    for job, made in run_jobs(open_bench if config.workers > 1 else lambda: bench, jobs, config.workers):
        rows[job.method.name] += made
        if isinstance(job.method, BaselineMethod):
            cache.add(job.method, made)
        done += len(made)
        if progress is not None:
            progress(job.method.name, done, total)
    place = {(request.prompt, request.seed): index for index, request in enumerate(requests)}
    for found in rows.values():
        found.sort(key=lambda row: place[row.prompt, row.seed])

    tables = {name: tabulate(name, found, requests) for name, found in rows.items()}
    bounds = {method.name for method in baselines if method.baseline.oracle}
    summary = {
        **compare(
            tables.pop(policy.name),
            {name: table for name, table in tables.items() if name not in bounds},
            {name: table for name, table in tables.items() if name in bounds},
            [request.tier for request in requests[:: config.seeds]],
            config,
        ),
        "actions": action_shares(rows[policy.name], policy.engine.actions),
        "seed": config.seed,
        "config": {
            "quality": bench.metric,
            "images": len(requests),
            "reused_images": reused,
            "backbone": policy.trained.backbone_identity,
            "evaluation": asdict(config),
            "engine": asdict(policy.engine),
            "observation": asdict(policy.trained.observation),
        },
        "model_version": model_version if model_version is not None else policy.trained.model_version,
    }
    write_rows(run_dir / IMAGES_FILE, [row for found in rows.values() for row in found])
    _record_strips(bench, policy, rows[policy.name], config, run_dir / STRIPS_FILE)
    summary["seconds_total"] = time.perf_counter() - start
    assert set(summary) == set(SUMMARY_KEYS)
    with written_aside(run_dir / SUMMARY_FILE) as aside:
        aside.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def evaluation_requests(config: EvaluationConfig) -> list[EpisodeRequest]:
    """Distinct prompts, at most `prompts_per_tier` a tier, each with its seeds in a row.

    A seed belongs to one prompt only. Were seeds shared between prompts, so would be the initial noise, and
    prompts would not be independent, which the bootstrap relies on.
    """
    limit = TIERS_OF_SHAPES * config.prompts_per_tier if config.prompts == "shapes" else None
    taken: Counter[str | None] = Counter()
    chosen: dict[str, str | None] = {}
    for prompt in config.load_prompts(limit):
        if taken[prompt.tier] < config.prompts_per_tier:
            chosen[prompt.text] = prompt.tier
            taken[prompt.tier] += 1
    if len(chosen) < 2:
        raise UserError(f"evaluation.prompts={config.prompts}: give at least two different prompts")
    return [
        EpisodeRequest(text, _noise_seed(config.seed, text, number), tier)
        for text, tier in chosen.items()
        for number in range(config.seeds)
    ]


def baseline_methods(policy: PolicyMethod, config: EvaluationConfig) -> list[BaselineMethod]:
    """The configured baselines, with the guidance of the policy's engine and its price of a look."""
    return [
        BaselineMethod(baseline, baseline.engine_config(policy.engine))
        for baseline in map(parse_baseline, config.baselines)
    ]


def _missing_jobs(
    methods: Sequence[Method],
    requests: Sequence[EpisodeRequest],
    rows: Mapping[str, Sequence[ImageRow]],
    slots: int,
) -> list[Job]:
    """What is still to be made: for each method the requests it has no row of."""
    jobs: list[Job] = []
    for method in methods:
        found = {(row.prompt, row.seed) for row in rows[method.name]}
        jobs += jobs_of(method, [one for one in requests if (one.prompt, one.seed) not in found], slots)
    return jobs


def _record_strips(
    bench: Bench, policy: PolicyMethod, rows: Sequence[ImageRow], config: EvaluationConfig, path: Path
) -> None:
    """Make a few of the policy's images again, this time with a preview of every decision."""
    chosen = pick(rows, config.strips)
    if not chosen:
        path.unlink(missing_ok=True)
        return
    wanted = tuple(EpisodeRequest(row.prompt, row.seed, row.tier) for row in chosen)
    made = generate(bench, Job(policy, wanted, config.slots, record_previews=True))
    write_strips(
        path,
        [
            strip(row, episode, image)
            for row, episode, image in zip(made.rows, made.episodes, made.images_BHWC, strict=True)
        ],
    )


def _noise_seed(seed: int, prompt: str, number: int) -> int:
    """31 bits from the evaluation's seed, the prompt and the image's number."""
    digest = hashlib.sha256(f"{seed}\n{number}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
