"""Arguments and options that several commands have in common.

Always true here: nothing is imported but typer, before an option is given that needs more, so that `--help`
is answered at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[OVERRIDES]...",
        help="OPTION=VALUE, GROUP=FILE or @FILE, for example ppo.lr=1e-4 solver=ddim",
    ),
]


def whole_number(text: str) -> int:
    """A whole number, or an error that names what was given instead."""
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is not a whole number") from error


def device(text: str) -> str:
    """A device's name, or an error that names what was given instead."""
    from actors.backbones.config import DEVICES, is_device

    if not is_device(text):
        raise typer.BadParameter(f"'{text}' is no device; give {DEVICES}")
    return text


RunsDir = Annotated[Path, typer.Option("--runs-dir", help="The folder that holds the runs.")]
RUNS = Path("runs")
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers there.")]
Device = Annotated[
    str | None,
    typer.Option(parser=device, metavar="DEVICE", help="Where to run; else as backbone.device says."),
]
