"""One thing that `addiffusion doctor` examined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actors.errors import redacted


@dataclass(frozen=True)
class Check:
    """What was found, and the hint if that is not enough."""

    name: str
    passed: bool
    found: str
    hint: str = ""


def guarded(name: str, examine: Callable[[], Check]) -> Check:
    """The check, or what it raised as a failed one."""
    try:
        return examine()
    except Exception as error:  # whatever a broken installation raises belongs into its row
        reason = redacted(" ".join(str(error).split())) or type(error).__name__
        return Check(name, False, type(error).__name__, reason)
