"""The one exception that means: the user asked for something that cannot be done.

Always true here: the message is one line that names the option, its value and what is accepted. The
command line prints it and exits with 2; every other exception is our fault and keeps its traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake. Whatever line breaks the message brought along are folded into one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
