"""What a command line of ours would do, without doing it.

Always true here: nothing of the command runs; a mistake is the very error that running it would begin with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer


@dataclass(frozen=True)
class Parsed:
    """A command, such as ("rewards", "start"), the values of its parameters, and how each one is written.

    options: "--out" by parameter's name, None for an argument without a name; given: the parameters that
    the user gave.
    """

    path: tuple[str, ...]
    values: Mapping[str, Any]
    options: Mapping[str, str | None]
    given: frozenset[str]

    @property
    def overrides(self) -> list[str]:
        """OPTION=VALUE, GROUP=FILE and @FILE."""
        return list(self.values.get("overrides") or ())


def parse(arguments: Sequence[str]) -> Parsed:
    """Read `addiffusion ARGUMENTS`. Raises typer.TyperException for what the command line refuses."""
    from cluster.cli import app

    command: Any = typer.main.get_command(app)
    context = command.make_context("addiffusion", [*arguments] or ["--help"])
    path: tuple[str, ...] = ()
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        path += (name,)
        context = command.make_context(name, rest, parent=context)
    parameters = [each for each in command.params if each.name in context.params]
    return Parsed(
        path=path,
        values=dict(context.params),
        options={
            each.name: next((text for text in each.opts if text.startswith("--")), None)
            for each in parameters
        },
        given=frozenset(
            each.name
            for each in parameters
            if context.get_parameter_source(each.name).name in ("COMMANDLINE", "ENVIRONMENT")
        ),
    )
