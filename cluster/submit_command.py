"""`addiffusion submit`: one of our commands as a job of a Ray cluster.

Always true here: values of --env are neither printed nor logged here, nor part of the job's command line (Ray
itself keeps them with the job, and logs them on its nodes); nothing is sent before the command has been read,
the files measured and the cluster reached; what is said of the job goes to standard error, its own output to
standard output.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import typer

from actors.errors import UserError
from cluster import jobs, package
from cluster.entrypoint import Entrypoint, entrypoint

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

USERS_MISTAKE = 2
"""The exit code of a command that cannot be carried out: trying again does not help."""
_CONSTRAINTS = "constraints.txt"
_DEVELOPMENT = "# Development"
#: How long a job that is stopped may take to leave a checkpoint; Ray's own 3 s are too few.
_STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}

#: What the job server says, and for how long, while a head that has just been started is not ready.
_NO_AGENT, _AGENT_S = "No available agent", 180.0


@dataclass(frozen=True)
class Options:
    """How a command is submitted; see `addiffusion submit --help`. memory_gib: None leaves it to Ray."""

    address: str | None = None
    working_dir: Path = Path()
    excludes: Sequence[str] = ()
    storage: PurePosixPath | None = None
    environment: Sequence[str] = ()
    pip: bool = False
    cpus: float | None = None
    gpus: float | None = None
    memory_gib: float | None = None
    resources: Sequence[str] = ()
    python: str = "python"
    wait: bool = True
    retries: int = 0


def submit_command(arguments: Sequence[str], options: Options) -> int:
    """Send `addiffusion ARGUMENTS` to the cluster and follow it; the exit code is the job's."""
    if not arguments:
        raise UserError("submit: no command; give one after --, for example: -- train resources=cluster")
    if options.retries and not options.wait:
        raise UserError(f"--retries={options.retries}: give it without --no-wait; this process tries again")
    if options.retries < 0:
        raise UserError(f"--retries={options.retries}: give an integer >= 0")
    variables = environment(options.environment)
    job = f"{arguments[0]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    entry = entrypoint(
        arguments,
        job=job,
        folder=options.working_dir,
        storage=options.storage,
        variables=variables,
        python=options.python,
    )
    demands = _demands(options)
    pip = _requirements() if options.pip else None
    if entry.warning is not None:
        _say(f"warning: {entry.warning}")
    files = package.collect(
        options.working_dir, named=entry.named, excludes=options.excludes, world=entry.world
    )
    with tempfile.TemporaryDirectory() as folder:
        packed = package.pack(files, Path(folder) / "job.zip")
        client = jobs.connect(options.address)
        _say(f"files: {packed.files}, {packed.size / package.MIB:.1f} MiB")
        runtime_env: dict[str, Any] = {
            "working_dir": str(packed.path),
            "env_vars": {**_STOP_WAIT, **variables},
        }
        if pip is not None:
            runtime_env["pip"] = {"packages": pip, "pip_check": False}
        for attempt in range(options.retries + 1):
            name = f"{job}-retry-{attempt}" if attempt else job
            line = entry.again if attempt else entry.line
            _send(client, name, line, runtime_env, demands, variables)
            if not options.wait:
                _say(jobs.how_to(job, options.address))
                typer.echo(job)
                return 0
            ended = jobs.watch(client, name, options.address)
            if ended is None:
                return jobs.STOPPED
            code = jobs.exit_code(ended)
            _say(_outcome(ended, code, entry))
            if ended.status != "FAILED" or code == USERS_MISTAKE:
                break
            if attempt < options.retries:
                _say(f"retry {attempt + 1} of {options.retries}")
    return code


def environment(given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, or NAME with this process's own value. UserError never names a value."""
    variables = {}
    for text in given:
        name, assigned, value = text.partition("=")
        if not name.isidentifier():
            raise UserError(f"--env {name if assigned else '...'}: give NAME or NAME=VALUE")
        if not assigned:
            if name not in os.environ:
                raise UserError(f"--env {name}: is not set here; give {name}=VALUE, or set it")
            value = os.environ[name]
        variables[name] = value
    return variables


def _demands(options: Options) -> dict[str, Any]:
    """What the entrypoint itself reserves; its env runners and reward models ask for their own."""
    resources = {}
    for text in options.resources:
        name, _, number = text.partition("=")
        try:
            resources[name] = float(number)
        except ValueError as error:
            raise UserError(f"--resource {text}: give NAME=N, for example addiffusion_denoiser=1") from error
    numbers = {"--cpus": options.cpus, "--gpus": options.gpus, "--memory": options.memory_gib}
    numbers |= {f"--resource {name}": amount for name, amount in resources.items()}
    for option, amount in numbers.items():
        if amount is not None and not 0 <= amount < float("inf"):
            raise UserError(f"{option}={amount:g}: give a number >= 0")
    memory = None if options.memory_gib is None else int(options.memory_gib * 2**30)
    return {
        "entrypoint_num_cpus": options.cpus,
        "entrypoint_num_gpus": options.gpus,
        "entrypoint_memory": memory,
        "entrypoint_resources": resources or None,
    }


def _requirements() -> list[str]:
    """The versions that belong together, without Ray, which has to be the cluster's own, and tools."""
    path = package.PROJECT / _CONSTRAINTS
    if not path.is_file():
        raise UserError(f"--pip: {path} is not there; submit from a checkout, or install it on the nodes")
    lines = path.read_text(encoding="utf-8").partition(_DEVELOPMENT)[0].splitlines()
    return [line for line in lines if line and not line.startswith(("#", "ray=="))]


def _send(
    client: JobSubmissionClient,
    job: str,
    line: str,
    runtime_env: Mapping[str, Any],
    demands: Mapping[str, Any],
    variables: Mapping[str, str],
) -> None:
    end = time.monotonic() + _AGENT_S
    while True:
        try:
            client.submit_job(entrypoint=line, submission_id=job, runtime_env=dict(runtime_env), **demands)
        except (RuntimeError, ValueError, OSError) as error:
            if _NO_AGENT in str(error) and time.monotonic() < end:
                time.sleep(1.0)
                continue
            said = (str(error).splitlines() or [type(error).__name__])[0]
            for value in filter(None, variables.values()):
                said = said.replace(value, "***")
            raise UserError(f"the cluster refuses the job: {said[:500]}") from None
        _say(f"job: {job}")
        return


def _outcome(ended: JobDetails, code: int, entry: Entrypoint) -> str:
    job, results = ended.submission_id, f"; results: {entry.results}" if entry.results else ""
    if ended.status == "FAILED":
        if ended.driver_exit_code is None:
            return f"job {job} failed: {' '.join((ended.message or 'no reason given').split())[:500]}"
        return f"job {job} failed with exit code {code}{results}"
    return f"job {job} {ended.status.lower()}{results}"


def _say(text: str) -> None:
    typer.echo(text, err=True)
