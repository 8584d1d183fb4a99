"""The page at `/`: one file that asks nobody else for anything.

Always true here: the browser is told to run the page's own script and style and nothing else, by their
hashes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

FILE = Path(__file__).with_name("page.html")


@functools.cache
def page() -> tuple[str, dict[str, str]]:
    """The page, and the headers it is sent with."""
    content = FILE.read_text(encoding="utf-8")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash('script', content)}",
            f"style-src {_hash('style', content)}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return content, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


def _hash(element: str, content: str) -> str:
    """Of the text of the only such element."""
    (text,) = re.findall(rf"<{element}>(.*?)</{element}>", content, flags=re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
