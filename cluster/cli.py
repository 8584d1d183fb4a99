"""`addiffusion`: the command line.

Always true here: a user's mistake is one line on stderr and exit code 2, without a traceback and without
anything half-written; our own mistakes keep their traceback. Commands import what they need when they run,
so that `--help` and a typing error are answered at once.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from actors.errors import UserError
from cluster.baselines_command import baselines_app
from cluster.bench_options import bench_app
from cluster.image_options import judge, layout, metrics
from cluster.options import RUNS, Overrides, RunsDir, whole_number
from cluster.registry_command import registry_app
from cluster.rewards_command import rewards_app
from cluster.serve_options import serve
from cluster.submit_options import jobs_app, submit

_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)

app = typer.Typer(
    name="addiffusion",
    help="Learns how much compute each prompt of a frozen text-to-image diffusion model deserves.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at the configuration.")
app.add_typer(config_app, name="config")
app.add_typer(bench_app, name="bench")
app.add_typer(rewards_app, name="rewards")
app.add_typer(registry_app, name="registry")
app.add_typer(baselines_app, name="baselines")
app.add_typer(jobs_app, name="jobs")


@app.command()
def train(
    overrides: Overrides = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with this run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the configuration and stop.")] = False,
) -> int:
    """Train a policy, register it, evaluate it, and write the report."""
    from cluster.train_command import train_and_report

    return train_and_report(overrides or [], resume=resume, dry_run=dry_run)


@app.command()
def tune(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="sweep=FILE|ablation=FILE [OVERRIDES]...",
            help="A file of tune_configs/sweep/ or tune_configs/ablation/, then OPTION=VALUE, GROUP=FILE "
            "or @FILE for every trial, and sweep.OPTION=VALUE for the sweep itself.",
        ),
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="SWEEP", help="Go on with this sweep.")] = None,
    long: Annotated[
        str | None,
        typer.Option(
            metavar="SWEEP",
            help="Train its best for long; the best of these goes to the registry's gate.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the trials and stop.")] = False,
) -> int:
    """Train many variants, and compare them in one table."""
    from cluster.tune_command import tune_and_report

    return tune_and_report(overrides or [], resume=resume, long=long, dry_run=dry_run)


@app.command()
def evaluate(
    policy: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A run, a policy's folder, or name@alias.")
    ],
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Compare a policy with fixed schedules on held-out prompts, and write the report."""
    from cluster.evaluate_command import evaluate_and_report

    evaluate_and_report(policy, overrides or [], runs_dir=runs_dir)


@app.command()
def offline(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OVERRIDES]...",
            help="OPTION=VALUE or @FILE, for example algorithm=bc trajectories=runs/run name=cloned",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the configuration and stop.")] = False,
) -> int:
    """Learn a policy from stored episodes alone: by bc, marwil or dpo."""
    from cluster.offline_command import learn_offline

    return learn_offline(overrides or [], dry_run=dry_run)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to paint.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|MODEL", help="A run, a policy's folder, or name@alias; else the newest run."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Fixes all noise of the picture.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("picture.png"),
    max_nfe: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Denoiser calls it may cost; else as the policy was trained.",
        ),
    ] = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Paint one picture with a trained policy, and show what it decided."""
    from cluster.generate_command import generate_picture

    generate_picture(prompt, model=model, seed=seed, out=out, max_nfe=max_nfe, runs_dir=runs_dir)


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="An evaluated run.")], runs_dir: RunsDir = RUNS
) -> None:
    """Write the report of an evaluated run again."""
    from cluster.runs import find_run
    from evaluation.report import write_report

    typer.echo(f"report: {write_report(find_run(run, runs_dir))}")


@app.command()
def gates(
    run: Annotated[str, typer.Argument(metavar="RUN", help="An evaluated run.")],
    runs_dir: RunsDir = RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print gates G0 to G4 and hypotheses H1 to H4: number, interval, outcome, what to do next."""
    from cluster.gates_command import print_gates

    print_gates(run, runs_dir=runs_dir, as_json=as_json)


@app.command()
def transfer(
    policy: Annotated[str, typer.Argument(metavar="RUN", help="A run.")],
    overrides: Overrides = None,
    solvers: Annotated[
        str, typer.Option(metavar="SOLVER[-N],...", help="Else the policy's own, as for N.")
    ] = "",
    backbones: Annotated[
        str, typer.Option(metavar="NAME,...", help="Of the same widths; its own is always among them.")
    ] = "",
    prompts: Annotated[str, typer.Option(metavar="SOURCE,...", help="Else as evaluation.prompts says.")] = "",
    runs_dir: RunsDir = RUNS,
) -> None:
    """Evaluate a policy where it was not trained, without training: solvers x backbones x prompts."""
    from cluster.gates_command import run_transfer

    run_transfer(
        policy,
        overrides or [],
        solvers=solvers,
        backbones=backbones,
        prompts=prompts,
        runs_dir=runs_dir,
    )


@app.command()
def front(
    policies: Annotated[
        list[str],
        typer.Argument(
            metavar="SWEEP|RUN|MODEL... [OVERRIDES]...",
            help="A sweep stands for all it has trained; OPTION=VALUE as for `evaluate`.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where it goes; else `front` among the runs.")
    ] = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Compare several policies, each with fixed schedules of its own cost, and draw their front."""
    from cluster.front_command import draw_front

    draw_front(policies, out=out, runs_dir=runs_dir)


@app.command()
def doctor(
    overrides: Overrides = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="CARD", help="Hold the memory audit against this card, for example a100-40."),
    ] = None,
) -> int:
    """Check everything that a training run needs; exit code 1 if something is missing."""
    from cluster.doctor_command import examine

    return examine(overrides or [], gpu=gpu)


@config_app.command()
def show(overrides: Overrides = None) -> None:
    """Print the configuration in full, with the overrides applied."""
    from tune_configs.loading import compose

    typer.echo(compose(overrides or []).to_yaml(), nl=False)


for command in (metrics, layout, judge, serve, submit):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit. Libraries' warnings are for developers: `python -W` shows them."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(args=arguments or ["--help"], prog_name="addiffusion", standalone_mode=False)
    except typer.TyperException as error:
        return _say(error.format_message(), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, UserError) and not _is_remote(cause):
                return _say(str(cause), 2)
            if _is_full_disk(cause):
                where = getattr(cause, "filename", None)
                return _say(
                    f"no space left on device{f' for {where}' if where else ''}; free some, "
                    "or write elsewhere with runs_dir=FOLDER or --out FILE",
                    2,
                )
            if isinstance(cause, OSError) and cause.errno in _NO_ACCESS and cause.filename:
                return _say(
                    f"{cause.filename}: {os.strerror(cause.errno)}; change its permissions, or name another "
                    "place with runs_dir=FOLDER, --runs-dir FOLDER or --out FILE",
                    2,
                )
        raise
    return code if isinstance(code, int) else 0


def _say(message: str, code: int) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return code


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, then what it was raised from; Ray keeps a worker's exception as `cause`."""
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__


def _is_remote(error: BaseException) -> bool:
    """Ray dresses a worker's UserError as one whose text is the worker's whole traceback."""
    return isinstance(getattr(error, "cause", None), BaseException)


def _is_full_disk(error: BaseException) -> bool:
    """Libraries in C++ and SQL report a full disk in words only."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "database or disk is full" in str(error)


if __name__ == "__main__":
    main()
