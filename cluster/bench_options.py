"""`addiffusion bench ...`: its commands and their options; what they do is in bench_command.py.

Always true here: nothing heavy is imported before a command runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.options import RUNS, Device, JsonFile, Overrides, RunsDir, whole_number

bench_app = typer.Typer(help="Measure this machine.")


@bench_app.command("rollout")
def bench_rollout(
    overrides: Overrides = None,
    episodes: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Images of one rollout.")
    ] = 64,
    slots: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Images that share a denoiser call.")
    ] = 16,
    repeats: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Repetitions behind each median.")
    ] = 5,
    scoring: Annotated[
        bool, typer.Option("--scoring", help="Also with every preview scored, in a second process.")
    ] = False,
    device: Device = None,
    json_file: JsonFile = None,
) -> None:
    """Measure the engine against itself one image at a time and against diffusers' own pipeline."""
    from cluster import bench_command

    bench_command.bench_rollout(
        overrides or [],
        episodes=episodes,
        slots=slots,
        repeats=repeats,
        scoring=scoring,
        device=device,
        out=json_file,
    )


@bench_app.command("scoring")
def bench_scoring(
    calls: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Calls of each of the 8 callers.")
    ] = 40,
    images: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Images of one call, of 64 x 64 pixels.")
    ] = 32,
    json_file: JsonFile = None,
) -> None:
    """Measure the rewards service: merged batches against one call a batch, and a lone caller's latency."""
    from cluster import bench_command

    bench_command.bench_scoring(calls=calls, images=images, out=json_file)


@bench_app.command("update")
def bench_update(
    decisions: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Decisions of one update.")
    ] = 2000,
    repeats: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Repetitions behind each median.")
    ] = 5,
    json_file: JsonFile = None,
) -> None:
    """Measure PPO's update on the seeds' observation, for several minibatch sizes, on one core."""
    from cluster import bench_command

    bench_command.bench_update(decisions=decisions, repeats=repeats, out=json_file)


@bench_app.command("scaling")
def bench_scaling(
    env_runners: Annotated[
        str, typer.Option(metavar="N,N,...", help="Numbers of env runners, one after another.")
    ] = "8,16,32",
    algorithms: Annotated[
        str, typer.Option(metavar="NAME,...", help="Learning algorithms, one after another.")
    ] = "ppo,appo",
    reward: Annotated[
        str, typer.Option(help="outcome: two previews an image are scored; balanced: every preview.")
    ] = "outcome",
    slots: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Episodes one env runner carries.")
    ] = 8,
    rounds: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="How often an iteration fills the slots.")
    ] = 4,
    iterations: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Iterations that count.")
    ] = 5,
    json_file: JsonFile = None,
) -> None:
    """Measure training with many env runners, a denoiser and scorers that only take time."""
    from cluster import bench_command

    bench_command.bench_scaling(
        env_runners=env_runners.split(","),
        algorithms=algorithms.split(","),
        reward=reward,
        slots=slots,
        rounds=rounds,
        iterations=iterations,
        out=json_file,
    )


@bench_app.command("serving")
def bench_serving(
    model: Annotated[
        str, typer.Argument(metavar="[RUN|MODEL]", help="A run, a policy's folder, or name@alias.")
    ] = "addiffusion-shapes@champion",
    requests: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Requests, of one image each.")
    ] = 200,
    clients: Annotated[
        int,
        typer.Option(parser=whole_number, metavar="N", help="Each waits for its answer, then asks again."),
    ] = 16,
    slots: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Images that share a denoiser call.")
    ] = 16,
    runs_dir: RunsDir = RUNS,
    json_file: JsonFile = None,
) -> None:
    """Measure the endpoint: diffusers' pipeline, the engine one at a time, and continuous batching."""
    from cluster import bench_command

    bench_command.bench_serving(
        model, requests=requests, clients=clients, slots=slots, runs_dir=runs_dir, out=json_file
    )
