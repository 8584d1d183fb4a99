"""Commands about stored images: `addiffusion metrics`, `layout` and `judge`, with their options.

Always true here: nothing heavy is imported before a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.layout_command import Benchmark
from cluster.options import whole_number


def metrics(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES... [OVERRIDES]...",
            help="Evaluated runs, Parquet tables or folders of images, and options such as"
            " evaluation.metrics.reference=coco",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where features and numbers go: ./metrics, or of one run into the run and its report.",
        ),
    ] = None,
) -> None:
    """Measure stored images: scores, FID, CMMD, diversity, costs; each measured, or missing with a reason."""
    from cluster.metrics_command import measure_images

    measure_images(arguments, out=out)


def layout(
    benchmark: Annotated[Benchmark, typer.Argument(help="Whose scripts are to read the images.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A Parquet table or a folder of images.")],
    prompts: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The benchmark's own: evaluation_metadata.jsonl, color_val.txt."),
    ],
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which method's images, where there are several.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Lay the images out there.")] = None,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read what the benchmark's scripts wrote.")
    ] = None,
) -> None:
    """Lay images out for GenEval's or T2I-CompBench's own scripts, or read back what these found."""
    from cluster.layout_command import lay_out

    lay_out(benchmark, images, prompts=prompts, method=method, out=out, results=results)


def judge(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES...", help="Evaluated runs, Parquet tables or folders of images."),
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", metavar="NAME", help="Judge this one and the others named so; else all."),
    ] = None,
    judges: Annotated[
        list[str] | None, typer.Option("--judge", metavar="NAME", help="gpt-4o or gemini; may be repeated.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Any endpoint that speaks OpenAI's chat protocol.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="A model there, or instead of the preset's.")
    ] = None,
    key_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="The environment variable that holds the API key.")
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(parser=whole_number, metavar="N", help="Images a pair of methods; else all in common."),
    ] = None,
    seed: Annotated[int, typer.Option(parser=whole_number, metavar="N", help="Which images are drawn.")] = 0,
    at_once: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Questions under way at the same time.")
    ] = 4,
    max_usd: Annotated[
        float,
        typer.Option(metavar="USD", help="Start nothing that is estimated to cost more; inf: no limit."),
    ] = 10.0,
    input_usd: Annotated[
        float | None, typer.Option(metavar="USD", help="What the judge charges for a million input tokens.")
    ] = None,
    output_usd: Annotated[
        float | None, typer.Option(metavar="USD", help="What it charges for a million output tokens.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the estimate and stop.")] = False,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where answers and judge.json go.")] = Path(
        "judge"
    ),
) -> int:
    """Let a vision-language model judge methods' images in pairs, in both orders."""
    from cluster import judge_command

    return judge_command.judge_images(
        images,
        judge_command.judges_of(judges or [], base_url, model, key_variable, input_usd, output_usd),
        methods=methods or [],
        pairs=pairs,
        seed=seed,
        at_once=at_once,
        max_usd=max_usd,
        dry_run=dry_run,
        out=out,
    )
