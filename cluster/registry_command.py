"""`addiffusion registry list | show | register | promote | rollback | export | calibrate`: trained policies.

Always true here: what a command did is said in one line or table, with `--json` as JSON on stdout and nothing
else there. Exit code 1 means that the measured numbers said no (not promoted, nothing certified); a mistake
is 2, as everywhere.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from actors.errors import UserError
from cluster.options import device

if TYPE_CHECKING:
    from learner.champions import Champions, Version

registry_app = typer.Typer(
    help="Trained policies: which there are, which one counts, how early they may stop."
)

RunsDir = Annotated[Path, typer.Option("--runs-dir", help="The folder that holds the runs.")]
TrackingUri = Annotated[
    str | None,
    typer.Option("--tracking-uri", metavar="URI", help="MLflow's; else the sqlite file among the runs."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[str, typer.Argument(metavar="NAME[@ALIAS|/VERSION]", help="A registered model.")]
Prompts = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Held-out prompts; else the embedded world's validation captions."),
]
Seeds = Annotated[int, typer.Option(min=1, metavar="N", help="Images a prompt.")]
Device = Annotated[
    str | None,
    typer.Option(parser=device, metavar="DEVICE", help="Where to run; else as the policy was trained."),
]
RUNS = Path("runs")


@registry_app.command("list")
def list_models(runs_dir: RunsDir = RUNS, tracking_uri: TrackingUri = None, as_json: AsJson = False) -> None:
    """List all versions of all models, the newest first."""
    champions = open_registry(runs_dir, tracking_uri)
    rows = [_row(champions, version) for name in champions.models() for version in champions.versions(name)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    headers = ("", "aliases", "date", "utility", "quality", "NFE", "H2, 95%", "stops at")
    for name in dict.fromkeys(row["model"] for row in rows):
        table = Table(box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)
        for header in headers:
            table.add_column(header, no_wrap=header != "aliases")
        for row in rows:
            if row["model"] == name:
                table.add_row(*_cells(row))
        typer.echo(name)
        Console().print(table)


@registry_app.command()
def show(
    model: Model, runs_dir: RunsDir = RUNS, tracking_uri: TrackingUri = None, as_json: AsJson = False
) -> None:
    """Show everything that is known of one version; of NAME alone the champion, else the candidate."""
    from actors.policy import load_policy
    from learner import registry

    champions = open_registry(runs_dir, tracking_uri)
    version = champions.find(model)
    _, metadata = load_policy(registry.policy_folder(version.label, uri=champions.uri))
    told: dict[str, Any] = {
        **_row(champions, version),
        "tags": version.tags,
        "training": champions.metrics(version),
        "config": champions.config(version),
        "policy": metadata,
        "history": [asdict(change) for change in champions.history(version.name)],
    }
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    console = Console()
    for title, entries in (
        ("model", _row(champions, version)),
        ("measured in training", told["training"]),
        ("tags", told["tags"]),
        ("calibration", metadata.get("calibration", {})),
        ("options", champions.params(version)),
    ):
        table = Table(title, "", box=None, padding=(0, 1), pad_edge=False)
        for key, value in sorted(entries.items()) if title != "model" else entries.items():
            table.add_row(key, ", ".join(value) if isinstance(value, list) else _plain(value))
        if entries:
            console.print(table, "")
    for change in champions.history(version.name):
        typer.echo(f"{change.at} {change.action} {change.before or '-'} -> {change.version}: {change.reason}")


@registry_app.command()
def register(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run that has ended.")], runs_dir: RunsDir = RUNS
) -> None:
    """Register the policy of a run whose registry did not answer at its end."""
    from cluster.runs import find_run
    from learner.registration import read_result, register_run
    from learner.tracking import first_line

    run_dir = find_run(run, runs_dir)
    known = read_result(run_dir).model_version
    if known is not None:
        raise UserError(f"run '{run}': is version {known} of its model already")
    try:
        version = register_run(run_dir)
    except UserError:
        raise
    except Exception as error:  # whatever a server, a proxy or a database may raise
        raise UserError(f"run '{run}': its registry does not take it ({first_line(error)})") from error
    typer.echo(f"{run_dir}: version {version}")


@registry_app.command()
def promote(
    model: Model,
    prompts: Prompts = None,
    seeds: Seeds = 3,
    margin: Annotated[
        float | None, typer.Option(min=0.0, help="How far below the champion the interval may reach.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure again, whatever is stored.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote without the gate; needs --reason.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why; kept with the model.")] = None,
    device: Device = None,
    runs_dir: RunsDir = RUNS,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> int:
    """Make the candidate champion if its held-out utility allows it; exit code 1 if not."""
    from cluster.promotion import Gate, promote_version

    gate = Gate(prompts=prompts, seeds=seeds, margin=margin, measure=measure, device=device)
    champions = open_registry(runs_dir, tracking_uri)
    return promote_version(
        champions, model, gate, runs_dir=runs_dir, reason=reason, force=force, as_json=as_json
    )


@registry_app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registered model.")],
    reason: Annotated[str, typer.Option(help="Why; kept with the model.")] = "",
    runs_dir: RunsDir = RUNS,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Go back to the champion before; again, to the one before that."""
    change = open_registry(runs_dir, tracking_uri).rollback(name, reason)
    if as_json:
        typer.echo(json.dumps(asdict(change), indent=2))
    else:
        typer.echo(f"{name}: champion is version {change.version} again (was {change.before or 'none'})")


@registry_app.command()
def export(
    model: Model,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that is not there yet.")],
    runs_dir: RunsDir = RUNS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write a version as a plain folder, which needs neither MLflow nor Ray."""
    from cluster.export import export_policy
    from learner import registry

    champions = open_registry(runs_dir, tracking_uri)
    version = champions.find(model)
    policy_dir = registry.policy_folder(version.label, uri=champions.uri)
    export_policy(policy_dir, folder, _row(champions, version) | {"tags": version.tags})
    typer.echo(f"{folder}: {version.label}; load it with AdaptiveSampler.from_pretrained('{folder}')")


@registry_app.command()
def calibrate(
    model: Annotated[
        str, typer.Argument(metavar="RUN|NAME[@ALIAS|/VERSION]", help="A run, or a registered model.")
    ],
    delta: Annotated[float, typer.Option(help="The mean quality loss that stopping early may cost.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="How sure that has to be.")] = 0.95,
    prompts: Prompts = None,
    limit: Annotated[int, typer.Option(min=2, metavar="N", help="Prompts at most.")] = 800,
    seeds: Seeds = 1,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Fixes captions and noise.")] = 1,
    largest_loss: Annotated[float, typer.Option(help="A larger loss of one image counts as this.")] = 1.0,
    slots: Annotated[int, typer.Option(min=1, metavar="N", help="Images that share a denoiser call.")] = 16,
    device: Device = None,
    runs_dir: RunsDir = RUNS,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> int:
    """Find the most economical stopping threshold that loses at most DELTA; exit code 1 if there is none."""
    from cluster.stopping_calibration import Limits, Sample, calibrate_stopping

    return calibrate_stopping(
        model,
        Limits(delta, confidence, largest_loss),
        Sample(prompts, limit, seeds, seed, slots, device),
        runs_dir=runs_dir,
        tracking_uri=tracking_uri,
        as_json=as_json,
    )


def open_registry(runs_dir: Path, tracking_uri: str | None) -> Champions:
    """The registry that the options name. Raises UserError if it is not there."""
    from learner import registry
    from learner.champions import Champions

    return Champions(tracking_uri or registry.tracking_uri(runs_dir))


def _row(champions: Champions, version: Version) -> dict[str, Any]:
    """One version in numbers; what was not measured is None."""
    training = champions.metrics(version)
    tags = version.tags

    def tagged(key: str) -> float | None:
        return float(tags[key]) if key in tags else None

    measured = tagged("held_out_nfe")
    return {
        "model": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "date": version.created,
        "utility": tagged("held_out_utility"),
        "quality": tagged("held_out_quality"),
        "nfe": measured if measured is not None else training.get("nfe"),
        "h2": tagged("h2_estimate"),
        "h2_low": tagged("h2_low"),
        "h2_high": tagged("h2_high"),
        "stop_threshold": tagged("stop_threshold"),
        "backbone": tags.get("backbone"),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    interval = "" if row["h2_low"] is None else f"{row['h2_low']:+.3f} to {row['h2_high']:+.3f}"
    return [
        row["version"],
        ", ".join(row["aliases"]),
        row["date"][:10],
        *(_number(row[key], digits) for key, digits in (("utility", 3), ("quality", 3), ("nfe", 1))),
        interval,
        _number(row["stop_threshold"], 3),
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _plain(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
