"""`addiffusion baselines list | run | fit-adadiff`: what a policy is compared with, without a policy.

Always true here: the options are train's; images go to the folder that evaluations keep theirs in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actors.errors import UserError
from cluster.options import Overrides

if TYPE_CHECKING:
    from actors.contracts import EpisodeRequest
    from evaluation.baselines.adadiff import Fitted
    from evaluation.config import EvaluationConfig
    from evaluation.rows import ImageRow
    from evaluation.tables import Table as Means
    from learner.config import RunConfig

baselines_app = typer.Typer(help="What a policy is compared with.")


@baselines_app.command("list")
def list_baselines() -> None:
    """Show the forms of names, and what each one is."""
    from rich.console import Console
    from rich.table import Table

    from evaluation.baselines import FAMILIES

    table = Table("name", "what it is", "runs on", box=None, padding=(0, 2), pad_edge=False)
    for family in FAMILIES.values():
        what = f"bound: {family.what}" if family.bound else family.what
        table.add_row(family.form, what, "any model" if family.model == "any" else family.model)
    console = Console(markup=False)
    console.print(table)
    console.print("\nN steps, K tries or particles, E an error from 0 to 1, SCORER a score of the bench.")


@baselines_app.command("run")
def run(
    names: Annotated[str, typer.Argument(metavar="NAME,NAME,...", help="For example unipc-10,fk-4@10")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one row an image there, as Parquet.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print the table as LaTeX.")] = False,
) -> None:
    """Make and score images with baselines, on the evaluation's prompts; what is there is not made again."""
    from cluster.evaluate_command import where_the_device_is
    from cluster.runs import check_writable
    from evaluation.rows import write_rows
    from tune_configs.loading import compose

    if out is not None:
        check_writable("--out", out)
    settings = compose(overrides or [])
    listed = [name for name in names.split(",") if name]
    rows, table = where_the_device_is(
        settings.evaluation, partial(_measured, listed, settings.run, Path(settings.run.runs_dir).absolute())
    )
    if out is not None:
        write_rows(out, [row for found in rows.values() for row in found])
    if latex:
        typer.echo(table.latex(), nl=False)
    elif markdown:
        typer.echo(table.markdown(), nl=False)
    else:
        _print(table.title, table.header, table.rows)


@baselines_app.command("fit-adadiff")
def fit_adadiff(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file.")],
    overrides: Overrides = None,
    prompts: Annotated[int, typer.Option(metavar="N", help="Training prompts.")] = 256,
    price: Annotated[
        float | None, typer.Option(metavar="SCORE", help="What one more NFE has to gain in image_reward.")
    ] = None,
) -> None:
    """Train the choice of a step count from the prompt; the baseline is then adadiff@FILE."""
    from actors.contracts import EpisodeRequest
    from cluster.evaluate_command import where_the_device_is
    from cluster.runs import check_writable
    from evaluation.evaluate import noise_seed
    from tune_configs.loading import compose

    if out.suffix != ".safetensors":
        raise UserError(f"FILE={out}: give a name that ends in .safetensors")
    check_writable("FILE", out)
    if prompts < 2:
        raise UserError(f"--prompts={prompts}: must be at least 2")
    if price is not None and not math.isfinite(price):
        raise UserError(f"--price={price:g}: give a number")
    settings = compose(overrides or [])
    chosen = settings.run.prompts.load()[:prompts]
    requests = [EpisodeRequest(one.text, noise_seed(settings.run.seed, one.text, 0)) for one in chosen]
    fitted = where_the_device_is(
        settings.evaluation, partial(_fitted, requests, settings.run, out.absolute(), price)
    )
    typer.echo(
        f"{out}: {fitted.prompts} prompts, {fitted.nfe} NFE of training; on them it chooses"
        f" {fitted.mean_steps:.1f} of {', '.join(map(str, fitted.steps))} steps on average"
    )


def _measured(
    names: Sequence[str], run: RunConfig, runs_dir: Path, config: EvaluationConfig
) -> tuple[dict[str, list[ImageRow]], Means]:
    from evaluation.baseline_run import run_baselines
    from evaluation.progress import progress_bar

    with progress_bar() as progress:
        return run_baselines(names, run.engine, run.backbone, config, runs_dir, progress)


def _fitted(
    requests: Sequence[EpisodeRequest],
    run: RunConfig,
    out: Path,
    price: float | None,
    config: EvaluationConfig,
) -> Fitted:
    from evaluation.baselines import adadiff
    from evaluation.bench import bench_recipe
    from evaluation.progress import progress_bar

    with progress_bar() as progress:
        return adadiff.fit(
            bench_recipe(run.backbone, config)(),
            requests,
            run.engine,
            out,
            price=adadiff.PRICE if price is None else price,
            slots=config.slots,
            seed=run.seed,
            progress=lambda done, total: progress("adadiff", done, total),
        )


def _print(title: str, header: object, rows: object) -> None:
    from rich.console import Console
    from rich.table import Table

    assert isinstance(header, tuple)
    assert isinstance(rows, list)
    table = Table(*header, box=None, padding=(0, 1), pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False)
    console.print(title)
    console.print(table)
