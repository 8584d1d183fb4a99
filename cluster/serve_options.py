"""`addiffusion serve`: its options; serve_command.py and cluster/serving have the rest.

Always true here: nothing heavy is imported before the command runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.options import RUNS, Device, RunsDir, whole_number


def serve(
    model: Annotated[
        str, typer.Argument(metavar="[RUN|MODEL]", help="A run, a policy's folder, or name@alias.")
    ] = "addiffusion-shapes@champion",
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine only with a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(parser=whole_number, metavar="N")] = 8000,
    replicas: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Processes that hold the backbone.")
    ] = 1,
    slots: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Images of each that share a denoiser call.")
    ] = 8,
    max_queue: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Images that may wait beyond the slots.")
    ] = 64,
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", metavar="S", help="Seconds that a request may take.")
    ] = 120.0,
    token_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="The environment variable that holds the token.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A running Ray's; else one is started here.")
    ] = None,
    poll_s: Annotated[
        float, typer.Option("--poll-s", metavar="S", help="Seconds between two looks at the alias.")
    ] = 5.0,
    device: Device = None,
    runs_dir: RunsDir = RUNS,
    tracking_uri: Annotated[
        str | None,
        typer.Option("--tracking-uri", metavar="URI", help="MLflow's; else the sqlite file among the runs."),
    ] = None,
) -> int:
    """Serve a policy over HTTP, compatible with OpenAI's images API, and follow its alias."""
    from cluster.serve_command import ServeOptions, serve_model

    options = ServeOptions(
        host=host,
        port=port,
        replicas=replicas,
        slots=slots,
        max_queue=max_queue,
        timeout_s=timeout_s,
        token_variable=token_variable,
        address=address,
        poll_s=poll_s,
        device=device,
    )
    return serve_model(model, options, runs_dir=runs_dir, tracking_uri=tracking_uri)
