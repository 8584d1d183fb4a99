"""Who judges: an endpoint that speaks OpenAI's chat protocol, and what it charges.

Always true here: no key is ever in a configuration, only the name of the environment variable that holds it.
Prices are list prices that were public when they were written down; they serve an estimate, not a bill.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from actors.errors import UserError

Detail = Literal["low", "high", "auto"]
ImageTokens = Literal["openai", "gemini"]


@dataclass(frozen=True)
class JudgeConfig:
    """A model behind an endpoint.

    key_variable names the environment variable with the API key; None sends none. input_usd and output_usd
    are US dollars a million tokens, None where unknown. image_tokens is the rule by which images are counted.
    extra goes into every request as it is.
    """

    model: str
    base_url: str
    key_variable: str | None = None
    detail: Detail = "auto"
    input_usd: float | None = None
    output_usd: float | None = None
    image_tokens: ImageTokens = "openai"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UserError(f"--base-url={self.base_url!r}: give an address such as http://localhost:8000/v1")
        if parts.username or parts.password:
            raise UserError("--base-url: holds a user or password; name a variable with --key-variable")
        if self.key_variable is not None and parts.scheme == "http" and not _is_local(parts.hostname):
            raise UserError(
                f"--base-url={self.base_url!r}: a key goes over https only, or to this machine; give an https"
                " address, or no key"
            )
        if not self.model:
            raise UserError("--model is empty: give the name of a model at the endpoint")
        for name in ("input_usd", "output_usd"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"{name}={value}: give US dollars a million tokens, at least 0")

    @property
    def url(self) -> str:
        """Where questions go."""
        return f"{self.base_url.rstrip('/')}/chat/completions"


#: List prices: OpenAI's of gpt-4o-2024-08-06, Google's of gemini-2.5-flash in 2025 and early 2026.
PRESETS = {
    "gpt-4o": JudgeConfig(
        model="gpt-4o-2024-08-06",
        base_url="https://api.openai.com/v1",
        key_variable="OPENAI_API_KEY",
        detail="high",
        input_usd=2.50,
        output_usd=10.00,
    ),
    "gemini": JudgeConfig(
        model="gemini-2.5-flash",
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        key_variable="GEMINI_API_KEY",
        input_usd=0.30,
        output_usd=2.50,
        image_tokens="gemini",
        # Thinking would be billed as output and may leave nothing of the answer.
        extra={"reasoning_effort": "none"},
    ),
}


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
