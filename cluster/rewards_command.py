"""`addiffusion rewards start | status | scale | stop | calibrate`: shared services; what a score is worth.

Always true here: a service runs on a cluster that was there before and stays there when the command ends;
nothing is started on a local Ray, where it would end with the command.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from actors.errors import UserError
from cluster.options import Device, Overrides, whole_number

if TYPE_CHECKING:
    from rewards_service.service import PoolStatus

rewards_app = typer.Typer(help="Reward models as a service on a Ray cluster.")

Name = Annotated[str, typer.Option("--name", metavar="NAME", help="The service.")]
Address = Annotated[
    str, typer.Option("--address", metavar="ADDRESS", help="A running Ray cluster, auto: here.")
]
NAME = "rewards"
AUTO = "auto"


@rewards_app.command()
def start(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OVERRIDES]...", help="As of train, for example rewards=per_scorer"),
    ] = None,
    name: Name = NAME,
) -> None:
    """Start the configured pools on the cluster of resources.address (else on this machine's)."""
    from learner.placement import demands
    from learner.session import await_room, reward_pools
    from rewards_service import service
    from tune_configs.loading import compose

    run = compose(overrides or []).run
    with _cluster(run.resources.address or AUTO, "resources.address"), _one_line():
        wanted = demands(replace(run.resources, num_env_runners=0), replace(run.rewards, service=None))
        await_room(wanted, run.resources.patience_s, typer.echo)
        service.start(name, reward_pools(run), detached=True)
        typer.echo(f"service {name!r} runs; use it with: addiffusion train rewards.service={name} ...")
        _print(service.status(name))


@rewards_app.command()
def status(
    name: Name = NAME,
    address: Address = AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every pool: its replicas, what waits, how fast it is, what went wrong."""
    from rewards_service import service

    with _cluster(address, "--address"), _one_line():
        pools = service.status(name)
    if as_json:
        typer.echo(json.dumps([_row(pool) for pool in pools], indent=2))
    else:
        _print(pools)


@rewards_app.command()
def scale(
    pools: Annotated[list[str], typer.Argument(metavar="SCORER=N...", help="How many replicas.")],
    name: Name = NAME,
    address: Address = AUTO,
) -> None:
    """Start or end replicas while the service is in use; no call is lost."""
    from rewards_service import service

    wanted = dict(_assignment(text) for text in pools)
    with _cluster(address, "--address"), _one_line():
        for pool, replicas in wanted.items():
            service.scale(name, pool, replicas)
        _print(service.status(name))


@rewards_app.command()
def stop(name: Name = NAME, address: Address = AUTO) -> None:
    """End a service. Runs that use it fail at their deadline unless it is started again before."""
    from rewards_service import service

    with _cluster(address, "--address"):
        ended = service.stop(name)
        if not ended:
            known = ", ".join(service.services()) or "none"
            raise UserError(f"--name={name}: no such service; running: {known}")
    typer.echo(f"service {name!r}: {ended} replicas ended")


@rewards_app.command()
def calibrate(
    overrides: Overrides = None,
    prompts: Annotated[
        int | None,
        typer.Option(parser=whole_number, metavar="N", help="Prompts; else as prompts.limit says."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(parser=whole_number, metavar="N", help="Images a prompt; else as prompts.seeds says."),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(parser=whole_number, metavar="N", help="Images in all; else every prompt and seed."),
    ] = None,
    device: Device = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a file that `train @FILE` takes.")
    ] = None,
) -> None:
    """Measure how much of each metric counts as 1, and the terminal reward's sigma."""
    from cluster.calibrate_command import calibrate_rewards

    calibrate_rewards(
        overrides or [], prompts=prompts, seeds=seeds, episodes=episodes, device=device, out=out
    )


def _cluster(address: str, option: str) -> AbstractContextManager[None]:
    """Connected to a running cluster, and disconnected at the end unless the connection was there before."""
    from learner.connection import connected

    return connected(address, option=option, log_to_driver=False)


@contextmanager
def _one_line() -> Iterator[None]:
    """What the service refuses is the user's mistake."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def _assignment(text: str) -> tuple[str, int]:
    pool, _, number = text.partition("=")
    if not pool or not number.isdecimal():
        raise UserError(f"'{text}': give SCORER=N, for example dino=2")
    return pool, int(number)


def _row(pool: PoolStatus) -> dict[str, object]:
    """One pool in numbers, with those of each replica that answered."""
    stats = pool.stats
    busy = [each.p50_ms for each in stats if each.calls]
    return {
        "scorer": pool.name,
        "replicas": pool.replicas,
        "alive": len(stats),
        "queue": sum(each.queue for each in stats),
        "images_per_s": round(sum(each.images_per_s for each in stats), 1),
        "p50_ms": round(statistics.median(busy), 1) if busy else None,
        "batch_size": min((each.batch_size for each in stats), default=None),
        "retries": sum(each.retries for each in stats),
        "restarts": pool.restarts,
        "per_replica": [asdict(each) for each in stats],
    }


def _print(pools: Sequence[PoolStatus]) -> None:
    headers = "scorer,replicas,alive,queue,images/s,p50 ms,batch,retries,restarts"
    table = Table(*headers.split(","), box=None, padding=(0, 1), pad_edge=False)
    for pool in pools:
        values = [value for key, value in _row(pool).items() if key != "per_replica"]
        table.add_row(*("" if value is None else str(value) for value in values))
    Console().print(table)
