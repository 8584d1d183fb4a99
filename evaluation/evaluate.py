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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from actors.backbones.config import BackboneConfig
from actors.contracts import EpisodeRequest
from actors.errors import UserError
from actors.files import written_aside
from actors.prompt_records import Prompt
from actors.prompts import EVALUATION_OPTIONS, PromptOptions
from actors.schedule import SolverName
from evaluation.analysis import failures, reference_of
from evaluation.baselines import parse_baseline
from evaluation.bench import Bench, bench_recipe
from evaluation.config import EvaluationConfig
from evaluation.generate import Job, Workers, jobs_of, run_jobs
from evaluation.methods import BaselineMethod, Method, PolicyMethod, read_policy
from evaluation.metrics.contracts import RESULTS_FILE
from evaluation.progress import Progress
from evaluation.rows import IMAGES_FILE, ImageRow, tabulate, write_rows
from evaluation.run_files import METRICS_FOLDER
from evaluation.store import ImageStore
from evaluation.strips import STRIPS_FILE, Shown, pick, strip, write_strips
from evaluation.summary import SUMMARY_FILE, SUMMARY_KEYS, action_shares, compare
from evaluation.traces import TRACES_FILE, trace, write_traces

STORE_FOLDER = "images"
"""Beside the runs: every image that an evaluation made."""

TIERS_OF_SHAPES = 4

Recipe = Callable[[BackboneConfig, EvaluationConfig], Callable[[], Bench]]


@dataclass(frozen=True)
class Conditions:
    """What a policy meets that it was not trained with; None leaves it as it was.

    On another backbone only the widths have to agree with the policy's.
    """

    solver: SolverName | None = None
    num_steps: int | None = None
    backbone: BackboneConfig | None = None

    def apply(self, policy: PolicyMethod) -> PolicyMethod:
        """The policy under these conditions. UserError for options that do not go together."""
        trained = policy.trained
        engine = replace(
            trained.engine,
            solver=self.solver or trained.engine.solver,
            num_steps=self.num_steps or trained.engine.num_steps,
        )
        if self.backbone is not None:
            trained = replace(trained, backbone=self.backbone)
        return replace(policy, trained=replace(trained, engine=engine), verify=self.backbone is None)


def evaluate(
    policy_dir: Path,
    run_dir: Path,
    config: EvaluationConfig,
    progress: Progress | None = None,
    *,
    model_version: str | None = None,
    recipe: Recipe = bench_recipe,
    conditions: Conditions = Conditions(),
) -> dict[str, Any]:
    """Compare the policy in policy_dir with the baselines; writes into run_dir and returns the summary.

    Images are kept beside run_dir and reused. `recipe` says how a backbone's bench is opened; `conditions`
    change what the policy was trained with. Raises UserError for prompts, a policy or a backbone that cannot
    be used.
    """
    start = time.perf_counter()
    policy = conditions.apply(read_policy(policy_dir, greedy=config.greedy, seed=config.seed))
    baselines = baseline_methods(policy, config)
    check_not_only_bounds(baselines, config)
    requests = evaluation_requests(config)
    open_bench = recipe(policy.trained.backbone, config)
    bench = open_bench()
    opened: list[Method] = [policy, *baselines]
    for method in opened:
        method.open(bench)  # whatever does not fit together is said before the first image
    store = image_store(run_dir.parent, bench, config)
    made, reused = images_of(
        opened, requests, store, open_bench if config.workers > 1 else lambda: bench, config, progress
    )
    rows = {method.name: found for method, found in zip(opened, made, strict=True)}
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
            "stored": {
                method.name: str(store.path(method).relative_to(run_dir.absolute().parent))
                for method in opened
            },
            "backbone": bench.backbone.identity,
            "evaluation": asdict(config),
            "engine": asdict(policy.engine),
            "observation": asdict(policy.trained.observation),
            "peak_gpu_gib": None,
        },
        "model_version": model_version if model_version is not None else policy.trained.model_version,
    }
    (run_dir / METRICS_FOLDER / RESULTS_FILE).unlink(missing_ok=True)  # of other images; features are kept
    write_rows(run_dir / IMAGES_FILE, [row for found in rows.values() for row in found])
    comparable = {name: found for name, found in rows.items() if name not in {policy.name, *bounds}}
    _record_traces(bench, policy, rows[policy.name], comparable, config, run_dir)
    summary["config"]["peak_gpu_gib"] = _peak_gpu_gib(config)
    summary["seconds_total"] = time.perf_counter() - start
    assert set(summary) == set(SUMMARY_KEYS)
    with written_aside(run_dir / SUMMARY_FILE) as aside:
        aside.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def image_store(runs_dir: Path, bench: Bench, config: EvaluationConfig) -> ImageStore:
    """The images of these weights, made under these conditions.

    A stored image brings its seconds along, and on another device, in another number type, or with another
    number sharing a denoiser call or a machine it would have taken others.
    """
    device = torch.device(config.device)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    workers = Workers.of(config)
    told = (bench.identity, machine, config.dtype, config.slots, workers.count, workers.gpus)
    identity = hashlib.sha256(repr(told).encode()).hexdigest()[:12]
    return ImageStore(runs_dir / STORE_FOLDER, identity)


def images_of(
    methods: Sequence[Method],
    requests: Sequence[EpisodeRequest],
    store: ImageStore,
    open_bench: Callable[[], Bench],
    config: EvaluationConfig,
    progress: Progress | None = None,
) -> tuple[list[list[ImageRow]], int]:
    """Each method's rows in the order of the requests, and how many were there already.

    Methods may share a name; those that share their key too are the same method, and made once.
    """
    told = [(method.name, method.key) for method in methods]
    distinct = dict(zip(told, methods, strict=True))
    rows = {key: store.known(method, requests) for key, method in distinct.items()}
    reused = sum(len(known) for known in rows.values())
    jobs: list[Job] = []
    for key, method in distinct.items():
        found = {row.key for row in rows[key]}
        missing = [request for request in requests if (request.prompt, request.seed) not in found]
        jobs += jobs_of(method, missing, config.slots)
    total, done = sum(len(job.requests) for job in jobs), 0
    for job, made in run_jobs(open_bench, jobs, Workers.of(config), store):
        rows[job.method.name, job.method.key] += made
        done += len(made)
        if progress is not None:
            progress(job.method.name, done, total)
    place = {(request.prompt, request.seed): index for index, request in enumerate(requests)}
    for known in rows.values():
        known.sort(key=lambda row: place[row.key])
    return [rows[key] for key in told], reused


def evaluation_requests(
    config: EvaluationConfig, options: PromptOptions = EVALUATION_OPTIONS
) -> list[EpisodeRequest]:
    """Distinct prompts, at most `prompts_per_tier` a tier, each with its seeds in a row.

    A seed belongs to one prompt only. Were seeds shared between prompts, so would be the initial noise, and
    prompts would not be independent, which the bootstrap relies on.
    """
    limit = TIERS_OF_SHAPES * config.prompts_per_tier if config.prompts == "shapes" else None
    taken: Counter[str | None] = Counter()
    chosen: dict[str, Prompt] = {}
    for prompt in config.load_prompts(limit, options):
        if taken[prompt.tier] < config.prompts_per_tier:
            chosen[prompt.text] = prompt
            taken[prompt.tier] += 1
    if len(chosen) < 2:
        raise UserError(f"{options.source}={config.prompts}: give at least two different prompts")
    return [
        EpisodeRequest(text, noise_seed(config.seed, text, number), prompt.tier, category=prompt.category)
        for text, prompt in chosen.items()
        for number in range(config.seeds)
    ]


def baseline_methods(policy: PolicyMethod, config: EvaluationConfig) -> list[BaselineMethod]:
    """The configured baselines, with the guidance of the policy's engine and its price of a look."""
    return [
        BaselineMethod(baseline, baseline.engine_config(policy.engine))
        for baseline in map(parse_baseline, config.baselines)
    ]


def check_not_only_bounds(baselines: Sequence[BaselineMethod], config: EvaluationConfig) -> None:
    """UserError where nothing is named that a policy can be compared with."""
    if all(method.baseline.oracle for method in baselines):
        raise UserError(
            f"evaluation.baselines={','.join(config.baselines)}: bounds only, with which nothing is compared;"
            " name a method too, for instance dpmpp-10"
        )


def _record_traces(
    bench: Bench,
    policy: PolicyMethod,
    rows: Sequence[ImageRow],
    baselines: Mapping[str, Sequence[ImageRow]],
    config: EvaluationConfig,
    run_dir: Path,
) -> None:
    """Make some of the policy's images again, with previews: what is shown, and what is followed."""
    reference = reference_of(rows, baselines)
    shown = [Shown(row) for row in pick(rows, config.strips)]
    shown += [
        Shown(failure.row, failure.loss, reference)
        for failure in failures(rows, baselines[reference], config.strips)
    ]
    chosen = {row.key: row for row in [*(one.row for one in shown), *pick(rows, config.traced)]}
    for file in (STRIPS_FILE, TRACES_FILE):
        (run_dir / file).unlink(missing_ok=True)
    if not chosen:
        return
    traced = trace(bench, policy, list(chosen.values()), config.slots)
    write_traces(run_dir / TRACES_FILE, traced.traces)
    place = {row.key: index for index, row in enumerate(traced.made.rows)}
    write_strips(run_dir / STRIPS_FILE, [strip(one, traced, place[one.row.key]) for one in shown])


def _peak_gpu_gib(config: EvaluationConfig) -> float | None:
    """Most GPU memory that this process held, backbone and scorers together.

    None without a GPU, and with several workers: they made the images, and what they held nobody asked them.
    """
    if config.workers > 1 or not config.device.startswith("cuda"):
        return None
    return float(torch.cuda.max_memory_allocated(config.device)) / 2**30


def noise_seed(seed: int, prompt: str, number: int) -> int:
    """31 bits from the evaluation's seed, the prompt and the image's number."""
    digest = hashlib.sha256(f"{seed}\n{number}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
