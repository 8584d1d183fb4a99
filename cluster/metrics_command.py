"""`addiffusion metrics`: every metric of stored images, measured or missing with its reason.

Always true here: a method's column is as long as any other's; what is missing is printed as missing, and the
reasons below the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from actors.errors import UserError
from cluster.runs import CONFIG, check_writable
from evaluation.metrics.contracts import RESULTS_FILE
from tune_configs.loading import Settings, compose, settings_from_yaml


def measure_images(arguments: Sequence[str], *, out: Path | None) -> None:
    """Measure the images that the arguments without "=" name, with the others as overrides.

    Of one evaluated run the numbers go into its report too, if no folder is given.
    """
    from evaluation.metrics.definitions import METRICS
    from evaluation.metrics.images import is_evaluated, read_sets
    from evaluation.metrics.measure import Resamples, as_json, measure
    from evaluation.progress import progress_bar
    from evaluation.report import write_report
    from evaluation.run_files import METRICS_FOLDER
    from evaluation.tables import measured_cell, missing_metrics

    overrides = [text for text in arguments if "=" in text or text.startswith("@")]
    paths = [Path(text) for text in arguments if text not in overrides]
    if not paths:
        raise UserError("IMAGES: give an evaluated run's folder, Parquet tables or folders of images")
    run_dir = paths[0] if len(paths) == 1 and is_evaluated(paths[0]) else None
    config = _settings(run_dir, overrides).evaluation
    reported = run_dir if out is None else None
    out = out or (Path("metrics") if run_dir is None else run_dir / METRICS_FOLDER)
    check_writable("--out", out, folder=True)
    sets = [each for path in paths for each in read_sets(path)]
    with progress_bar() as progress:
        results = measure(
            sets,
            config.metrics,
            out,
            scorers=config.scorers,
            device=config.device,
            intervals=Resamples(config.resamples, config.seed),
            progress=progress,
        )
    methods = as_json(results)
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for header in ("metric", *methods):
        table.add_column(header)
    for name in config.metrics.names:
        arrow = "↑" if METRICS[name].better == "higher" else "↓"
        table.add_row(
            f"{METRICS[name].label} {arrow}",
            *(measured_cell(measured[name]) for measured in methods.values()),
        )
    Console(width=200, soft_wrap=True).print(table)
    for line in missing_metrics({"methods": methods}):
        typer.echo(f"missing {line}")
    typer.echo(f"numbers: {out / RESULTS_FILE}")
    if reported is not None:
        typer.echo(f"report: {write_report(reported)}")


def _settings(run_dir: Path | None, overrides: Sequence[str]) -> Settings:
    """Those of the run, whose reward models its images were made with, or else config.yaml's."""
    if run_dir is not None and (run_dir / CONFIG).is_file():
        return settings_from_yaml(run_dir / CONFIG, overrides)
    return compose(overrides)
