"""`addiffusion bench rollout | scoring | update | scaling | serving`: how fast this machine is.

Always true here: the engine has one process with one thread on a CPU, so that machines can be compared;
with `--scoring` a second process scores. Nothing is written but the file that was asked for, and that whole.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from actors.errors import UserError


def bench_rollout(
    overrides: Sequence[str],
    *,
    episodes: int,
    slots: int,
    repeats: int,
    scoring: bool,
    device: str | None,
    out: Path | None,
) -> None:
    """Measure with the configured backbone and engine, print the table, and write it as JSON if asked to."""
    for option, value in (("--episodes", episodes), ("--slots", slots), ("--repeats", repeats)):
        if value < 1:
            raise UserError(f"{option}={value}: give a whole number from 1")
    _check_file(out)

    import numpy as np
    import torch

    from actors.backbones.loading import load_with_pipeline
    from evaluation.process_client import scoring_process
    from evaluation.progress import progress_bar
    from evaluation.rollout_benchmark import run_benchmark, table
    from evaluation.rollout_variants import Workload
    from rewards_service.loading import build_scorers
    from rewards_service.local import LocalClient
    from shapes import weights
    from tune_configs.loading import compose

    config = compose(overrides).run
    torch.set_num_threads(1)
    where = device if device is not None else config.backbone.device
    pipeline, backbone = load_with_pipeline(replace(config.backbone, device=where))
    opening = functools.partial(build_scorers, config.backbone.scorers or str(weights.PATH), where)
    try:
        client = LocalClient(opening())
    except ValueError as error:
        raise UserError(str(error)) from error
    prompts = config.prompts.load()
    wanted = ("clip_image", "clip_text", "image_reward")
    probe = client.score(np.zeros((1, 64, 64, 3), np.uint8), [prompts[0].text], wanted)
    with (
        scoring_process(opening) if scoring else nullcontext() as remote,
        progress_bar() as progress,
    ):
        report = run_benchmark(
            Workload(
                pipeline=pipeline,
                backbone=backbone,
                engine=config.engine,
                prompts=[prompt.text for prompt in prompts],
                slots=slots,
                episodes=episodes,
                repeats=repeats,
                scorer=functools.partial(client.score, outputs=wanted),
                embedding_dim=probe["clip_image"].shape[1],
                client=remote,
                reward=config.reward,
                continue_logit=config.ppo.continue_logit,
            ),
            progress,
        )
    header, *rows = table([report])
    _print(header, rows)
    _write(report, out)


def bench_scoring(*, calls: int, images: int, out: Path | None) -> None:
    """Measure the rewards service on a local Ray, print the numbers, and write them as JSON if asked to."""
    for option, value in (("--calls", calls), ("--images", images)):
        if value < 1:
            raise UserError(f"{option}={value}: give a whole number from 1")
    _check_file(out)

    from evaluation.scoring_benchmark import measure
    from learner.config import RunConfig
    from learner.session import ray_session

    with ray_session(RunConfig()):
        report = measure(calls=calls, images=images)
    _print(("key", "value"), [(key, f"{value:.4g}") for key, value in report.items()])
    _write(report, out)


def bench_update(*, decisions: int, repeats: int, out: Path | None) -> None:
    """Measure PPO updates, print a row a minibatch size, and write all numbers as JSON if asked to."""
    from evaluation.update_benchmark import EPISODES, measure

    for option, value, least in (("--decisions", decisions, EPISODES), ("--repeats", repeats, 1)):
        if value < least:
            raise UserError(f"{option}={value}: give a whole number from {least}")
    _check_file(out)

    report = measure(decisions=decisions, repeats=repeats)
    sizes: dict[str, dict[str, float]] = report["minibatches"]
    names = next(iter(sizes.values()))
    rows = [(name, *(f"{numbers[name]:.4g}" for numbers in sizes.values())) for name in names]
    _print(("minibatch", *sizes), rows)
    _say_rest(report, "minibatches")
    _write(report, out)


def bench_scaling(
    *,
    env_runners: Sequence[str],
    algorithms: Sequence[str],
    reward: str,
    slots: int,
    rounds: int,
    iterations: int,
    out: Path | None,
) -> None:
    """Measure training with each number of env runners on a local Ray; print, and write it if asked to."""
    for option, value, least in (
        ("--slots", slots, 2),
        ("--rounds", rounds, 1),
        ("--iterations", iterations, 2),
    ):
        if value < least:
            raise UserError(f"{option}={value}: give a whole number from {least}")
    if not all(number.isdecimal() and int(number) for number in env_runners):
        raise UserError(f"--env-runners={','.join(env_runners)}: give whole numbers from 1")
    _check_file(out)

    from evaluation import scaling_benchmark
    from learner.config import RunConfig
    from learner.resources import ResourcesConfig
    from learner.session import ray_session

    if reward not in scaling_benchmark.REWARDS:
        raise UserError(f"--reward={reward!r}: give one of {', '.join(scaling_benchmark.REWARDS)}")
    scaling_benchmark.check_algorithms(algorithms)
    reports = []
    with ray_session(RunConfig(resources=ResourcesConfig(num_cpus=4))):
        for algorithm in algorithms:
            for number in map(int, env_runners):
                report = scaling_benchmark.measure(
                    env_runners=number,
                    slots=slots,
                    rounds=rounds,
                    iterations=iterations,
                    algorithm=algorithm,
                    reward=reward,
                )
                reports.append(report)
                typer.echo(f"{algorithm}, {number} env runners: {report['of_ideal']:.3f} of ideal")
    header, *rows = scaling_benchmark.table(reports)
    _print(header, rows)
    _write({"runs": reports}, out)


def bench_serving(
    model: str,
    *,
    requests: int,
    clients: int,
    slots: int,
    runs_dir: Path,
    out: Path | None,
) -> None:
    """Measure the endpoint on a local Ray, print a row a variant, and write all numbers if asked to."""
    for option, value in (("--requests", requests), ("--clients", clients), ("--slots", slots)):
        if value < 1:
            raise UserError(f"{option}={value}: give a whole number from 1")
    _check_file(out)

    from cluster.serving.models import ModelSource, check_source

    source = ModelSource(model, runs_dir.absolute())
    check_source(source)

    from cluster.serving.application import ServingSettings, free_port
    from cluster.serving.benchmark import Load, benchmark_prompts, measure, table
    from evaluation.progress import progress_bar
    from learner.connection import connected

    load = Load(benchmark_prompts(requests), clients, slots)
    with connected(None, 2), progress_bar() as progress:
        report = measure(source, load, ServingSettings(port=free_port(), timeout_s=3600.0), progress)
    header, *rows = table(report)
    _print(header, rows)
    _say_rest(report, "variants")
    _write(report, out)


def _say_rest(report: Mapping[str, object], *left_out: str) -> None:
    rest = (f"{name} {value}" for name, value in report.items() if name not in left_out)
    typer.echo(" · ".join(rest))


def _check_file(out: Path | None) -> None:
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise UserError(f"--json={out}: give a file in a folder that exists")


def _print(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    printed = Table(*header, box=None)
    for row in rows:
        printed.add_row(*row)
    Console().print(printed)


def _write(report: Mapping[str, object], out: Path | None) -> None:
    if out is None:
        return
    from actors.files import written_aside

    with written_aside(out) as aside:
        aside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    typer.echo(f"{out}: all numbers")
