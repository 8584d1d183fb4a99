"""The one exception that means: the user asked for something that cannot be done.

Always true here: the message is one line that names the option, its value and what is accepted. The
command line prints it and exits with 2; every other exception is our fault and keeps its traceback. Of an
address it has no user and no password.
"""

from __future__ import annotations

import re

HIDDEN = "***"
"""Stands for user and password of an address wherever it is stored or shown."""
_USERINFO = re.compile(r"(?<=://)[^/?#\s'\"]*@")


class UserError(ValueError):
    """A user's mistake. Whatever line breaks the message brought along are folded into one line."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(" ".join(message.split())))


def redacted(text: str) -> str:
    """The text without user and password of the addresses in it: scheme://***@host."""
    return _USERINFO.sub(f"{HIDDEN}@", text)
