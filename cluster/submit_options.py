"""`addiffusion submit` and `addiffusion jobs`: their options; submit_command.py and jobs.py have the rest.

Always true here: nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.options import whole_number

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

jobs_app = typer.Typer(help="Jobs on a Ray cluster.")

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The cluster's dashboard; else RAY_ADDRESS, else http://127.0.0.1:8265.",
    ),
]
Job = Annotated[str, typer.Argument(metavar="ID", help="As `submit` has printed it.")]


def submit(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND...", help="Any of our commands, with its options."),
    ] = None,
    address: Address = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="A folder that all nodes share: runs and results go there, and stay."
        ),
    ] = None,
    working_dir: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Its files travel; relative paths are relative to it.")
    ] = Path(),
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Files that do not travel; may be repeated."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="A variable of the job, else with its value here."),
    ] = None,
    pip: Annotated[
        bool, typer.Option("--pip/--no-pip", help="Install constraints.txt for the job; slow, once a node.")
    ] = False,
    cpus: Annotated[float | None, typer.Option(metavar="N", help="CPUs of the command itself.")] = None,
    gpus: Annotated[float | None, typer.Option(metavar="N", help="GPUs of the command itself.")] = None,
    memory: Annotated[float | None, typer.Option(metavar="GIB", help="Memory of the command itself.")] = None,
    resource: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="A custom resource of the command; may be repeated."),
    ] = None,
    python: Annotated[str, typer.Option(metavar="PATH", help="The interpreter on the cluster.")] = "python",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the job's ID and come back at once.")
    ] = False,
    retries: Annotated[
        int,
        typer.Option(
            parser=whole_number, metavar="N", help="Submit a failed job again; train and tune go on."
        ),
    ] = 0,
) -> int:
    """Run one of our commands as a job of a Ray cluster; the exit code is the job's."""
    from cluster.submit_command import Options, submit_command

    options = Options(
        address=address,
        working_dir=working_dir,
        excludes=exclude or (),
        storage=None if storage is None else PurePosixPath(storage),
        environment=env or (),
        pip=pip,
        cpus=cpus,
        gpus=gpus,
        memory_gib=memory,
        resources=resource or (),
        python=python,
        wait=not no_wait,
        retries=retries,
    )
    return submit_command(command or (), options)


@jobs_app.command("list")
def list_jobs(
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the jobs that were submitted to the cluster, the newest first."""
    from rich.console import Console
    from rich.table import Table

    from cluster import jobs

    found = [job for job in jobs.connect(address).list_jobs() if job.submission_id]
    rows = [_row(job) for job in sorted(found, key=lambda job: -(job.start_time or 0))]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("job", "status", "started", "seconds", "command", box=None, padding=(0, 1), pad_edge=False)
    for row in rows:
        table.add_row(
            *("" if value is None else str(value) for name, value in row.items() if name != "exit_code")
        )
    Console(soft_wrap=True, markup=False).print(table)


@jobs_app.command()
def status(job: Job, address: Address = None) -> None:
    """Print a job's status."""
    from cluster import jobs

    row = _row(jobs.details(jobs.connect(address), job))
    typer.echo(" · ".join(f"{name} {value}" for name, value in row.items() if value is not None))


@jobs_app.command()
def logs(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False,
    address: Address = None,
) -> int:
    """Print a job's output; with --follow the exit code is the job's."""
    from cluster import jobs

    client = jobs.connect(address)
    jobs.details(client, job)
    if not follow:
        typer.echo(client.get_job_logs(job), nl=False)
        return 0
    ended = jobs.watch(client, job, address)
    return jobs.STOPPED if ended is None else jobs.exit_code(ended)


@jobs_app.command()
def stop(job: Job, address: Address = None) -> None:
    """Stop a job; a training leaves a checkpoint first, for which it has a minute."""
    from cluster import jobs

    ended = jobs.stop(jobs.connect(address), job)
    typer.echo(f"job {job} {ended.status.lower()}")


def _row(job: JobDetails) -> dict[str, object]:
    """A job without its environment, whose values are nobody's to read."""
    end = job.end_time or int(time.time() * 1000)
    words = shlex.split(job.entrypoint)
    command = words[words.index("cluster.cli") + 1 :] if "cluster.cli" in words else words
    return {
        "job": job.submission_id,
        "status": str(job.status.value).lower(),
        "started": job.start_time and time.strftime("%Y-%m-%d %H:%M", time.localtime(job.start_time / 1000)),
        "seconds": job.start_time and (end - job.start_time) // 1000,
        "exit_code": job.driver_exit_code,
        "command": shlex.join(command),
    }
