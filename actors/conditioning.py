"""Batches of conditioning, taken apart into rows that episodes keep, and put together for a denoiser call.

Always true here: rows come from one backbone, so all have the same parts and lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from actors.contracts import Conditioning


def conditioning_row(conditioning: Conditioning, row: int) -> Conditioning:
    """One prompt's conditioning out of a batch, still with a batch axis of 1."""
    one = slice(row, row + 1)
    null_BLD = conditioning.null_BLD
    return Conditioning(
        text_BLD=conditioning.text_BLD[one],
        null_BLD=null_BLD[one] if null_BLD is not None else None,
        pooled_BD=conditioning.pooled_BD[one],
        token_mask_BL=conditioning.token_mask_BL[one],
        extras={name: values[one] for name, values in conditioning.extras.items()},
    )


def stack_conditioning(rows: Sequence[Conditioning]) -> Conditioning:
    """Rows of one backbone as one batch."""
    nulls = [row.null_BLD for row in rows if row.null_BLD is not None]
    return Conditioning(
        text_BLD=torch.cat([row.text_BLD for row in rows]),
        null_BLD=torch.cat(nulls) if nulls else None,
        pooled_BD=torch.cat([row.pooled_BD for row in rows]),
        token_mask_BL=torch.cat([row.token_mask_BL for row in rows]),
        extras={name: torch.cat([row.extras[name] for row in rows]) for name in rows[0].extras},
    )
