"""Figures of a sweep: its variants as quality against cost, and its options as parallel coordinates.

Always true here: as in `evaluation.figures`, whose look this is; a variant without a number is not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from evaluation.figures import FAINT, INK, POLICY, canvas, rendered
from evaluation.front import Point, upper_envelope

_COLOURS = "viridis"  # even in lightness, for colour-blind readers too


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant as a point. utility: what colours it; values: of the options that were varied.

    fixed: a fixed schedule, which stands beside the policies.
    """

    name: str
    cost: float
    quality: float
    utility: float
    values: Mapping[str, bool | int | float | str]
    emphasised: bool = False
    fixed: bool = False


def quality_against_cost(variants: Sequence[Variant]) -> str:
    """Mean quality against mean cost of every variant, and the front of the best mixtures of them.

    Fixed schedules have a front of their own: what is to be beaten at equal cost.
    """
    with canvas(5.2, 4.3) as (figure, axes):
        for fixed, label, line in ((False, "front of the variants", "-"), (True, "fixed schedules", "--")):
            points = [Point(one.name, one.cost, one.quality) for one in variants if one.fixed == fixed]
            front = upper_envelope(points) if points else []
            if front:
                axes.plot(
                    [point.cost for point in front],
                    [point.quality for point in front],
                    color=FAINT,
                    linestyle=line,
                    linewidth=1.2,
                    label=label,
                    zorder=1,
                )
        for one in variants:
            colour = POLICY.colour if one.emphasised else FAINT if one.fixed else "#0072B2"
            marker = POLICY.marker if one.emphasised else "s" if one.fixed else "o"
            axes.plot(
                one.cost, one.quality, marker=marker, color=colour, markersize=7, linestyle="", zorder=3
            )
            axes.annotate(
                one.name,
                (one.cost, one.quality),
                textcoords="offset points",
                xytext=(5, -12) if one.fixed else (5, 4),
                fontsize=8,
                color=INK,
            )
        axes.set_xlabel("NFE an image, looks included at their price")
        axes.set_ylabel("held-out quality")
        axes.margins(0.12)
        axes.legend(loc="lower right")
        return rendered(figure).svg


def parallel_coordinates(variants: Sequence[Variant]) -> str:
    """One line a variant through the options that were varied, then cost, quality and utility.

    Numbers are drawn from their lowest to their highest, on a logarithmic axis where they span more than a
    factor of 20; texts in the order in which they come.
    """
    options = list(variants[0].values)
    columns = {option: [one.values[option] for one in variants] for option in options}
    places = {option: _scaled(values) for option, values in columns.items()}
    for name in ("cost", "quality", "utility"):
        columns[name] = [getattr(one, name) for one in variants]
        places[name] = _scaled(columns[name])
    utilities = [one.utility for one in variants]
    norm = Normalize(min(utilities), max(utilities))
    colours = mpl.colormaps[_COLOURS]
    with canvas(max(5.2, 0.95 * len(places)), 3.8) as (figure, axes):
        for line, one in enumerate(variants):
            heights = [place[line] for place in places.values()]
            axes.plot(
                range(len(places)), heights, color=colours(norm(one.utility)), linewidth=1.5, alpha=0.85
            )
        for at, (name, values) in enumerate(columns.items()):
            axes.axvline(at, color=FAINT, linewidth=0.8, zorder=0)
            for value, height in dict(zip(map(_short, values), places[name], strict=True)).items():
                if height in (0.0, 1.0) or isinstance(values[0], (str, bool)):
                    axes.annotate(
                        value, (at, height), textcoords="offset points", xytext=(3, 2), fontsize=7.5
                    )
        axes.set_xticks(
            range(len(places)), [name.rpartition(".")[2] for name in places], rotation=20, fontsize=8.5
        )
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.set_xlim(-0.2, len(places) - 0.5)
        figure.colorbar(ScalarMappable(norm, colours), ax=axes, label="held-out utility", shrink=0.85)
        return rendered(figure).svg


def _scaled(values: Sequence[bool | int | float | str]) -> list[float]:
    """Heights from 0 to 1."""
    if any(isinstance(value, (str, bool)) for value in values):
        order = list(dict.fromkeys(map(str, values)))
        return [order.index(str(value)) / max(len(order) - 1, 1) for value in values]
    numbers = np.array(values, dtype=np.float64)
    if numbers.min() > 0 and numbers.max() / numbers.min() > 20:
        numbers = np.log(numbers)
    span = float(np.ptp(numbers))
    return [0.5] * len(values) if span == 0 else [float(one) for one in (numbers - numbers.min()) / span]


def _short(value: bool | int | float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
