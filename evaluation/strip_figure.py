"""The decision strips as one picture: what was there at every decision, and what was decided.

Always true here: as in `evaluation.figures`, whose look this is; the strips are those that the report shows,
from the cheapest to the dearest, less those with more decisions than fit beside each other.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from evaluation.figures import FAINT, INK, STYLE, Picture, action_colour, rendered
from evaluation.strips import Strip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_DECISIONS = 12
_CELL = 0.92
"""Inches a side."""


def decisions(strips: Sequence[Strip], most: int = 3) -> Picture | None:
    """One row a strip, the returned image last; at most so many, None if no strip is short enough."""
    short = [strip for strip in strips if len(strip.frames) <= _MOST_DECISIONS]
    if not short:
        return None
    ranks = np.linspace(0, len(short) - 1, min(most, len(short))).round().astype(int)
    shown = [short[rank] for rank in ranks]
    columns = max(len(strip.frames) for strip in shown) + 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_CELL * columns, 1.6 * _CELL * len(shown)), layout="constrained")
        axes_RC = figure.subplots(len(shown), columns, squeeze=False)
        for axes_C, strip in zip(axes_RC, shown, strict=True):
            for axes in axes_C:
                axes.set_axis_off()
            # As long as its row: the first cell makes room above it, and not beside it.
            axes_C[0].set_title(" ", fontsize=8)
            text = axes_C[0].text(0, 1.08, strip.prompt, transform=axes_C[0].transAxes, fontsize=8, color=INK)
            text.set_in_layout(False)
            for axes, frame in zip(axes_C, strip.frames, strict=False):
                _cell(axes, frame.png, frame.action, f"{frame.nfe} NFE", action_colour(frame.action))
            _cell(axes_C[len(strip.frames)], strip.png, "returned", f"{strip.nfe} NFE", INK)
        return rendered(figure)


def _cell(axes: Axes, png: str, title: str, below: str, colour: str) -> None:
    image_HWC = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
    axes.set_axis_on()
    axes.imshow(image_HWC)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.5)
    axes.set_xlabel(title, fontsize=8, color=INK, labelpad=2)
    axes.text(0.5, -0.38, below, transform=axes.transAxes, ha="center", fontsize=6.5, color=FAINT)
