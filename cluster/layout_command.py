"""`addiffusion layout`: stored images as a benchmark's own scripts expect them, and what the scripts found.

Always true here: one method's images at a time; nothing is judged here.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer

from actors.errors import UserError


class Benchmark(StrEnum):
    """Whose layout."""

    GENEVAL = "geneval"
    COMPBENCH = "compbench"


def lay_out(
    benchmark: Benchmark,
    images: Path,
    *,
    prompts: Path,
    method: str | None,
    out: Path | None,
    results: Path | None,
) -> None:
    """Write the layout into `out`, or read the benchmark's `results` of it. Raises UserError."""
    from cluster.runs import check_writable
    from evaluation.metrics.images import read_sets
    from evaluation.metrics.layouts import read_compbench, read_geneval, write_compbench, write_geneval

    if (out is None) == (results is None):
        raise UserError("give --out FOLDER to lay images out, or --results FILE to read what was found")
    if out is not None:
        check_writable("--out", out, folder=True)
    found = {each.name: each for each in read_sets(images)}
    if method is None and len(found) > 1:
        raise UserError(f"{images}: holds {', '.join(found)}; choose one with --method")
    chosen = next(iter(found.values())) if method is None else found.get(method)
    if chosen is None:
        raise UserError(f"--method={method}: {images} has {', '.join(found)}")
    geneval = benchmark is Benchmark.GENEVAL
    if out is not None:
        count = (write_geneval if geneval else write_compbench)(chosen, prompts, out)
        typer.echo(f"{out}: {count} images of {chosen.name}")
        return
    assert results is not None
    answered = (read_geneval if geneval else read_compbench)(chosen, prompts, results)
    measured = answered.overall
    interval = "" if measured.ci95 is None else f" (95%: {measured.ci95[0]:.3f} to {measured.ci95[1]:.3f})"
    typer.echo(f"{chosen.name}: {measured.value:.3f}{interval}, {measured.images} images")
    for task, share in answered.by_task.items():
        typer.echo(f"  {task}: {share:.3f}")
