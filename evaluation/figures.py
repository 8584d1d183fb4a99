"""The report's figures: each a function of a summary or of rows that returns one picture, SVG and PNG.

Always true here: no display is needed, the same numbers give the same bytes, and text is drawn as outlines,
never parsed as mathematics. Colours are those of Okabe and Ito (2008), which colour-blind readers tell
apart, and every family of methods has its own marker besides. Sizes are chosen to be read on a phone.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from evaluation.front import Point, envelope_weights, upper_envelope
from evaluation.rows import ImageRow
from evaluation.traces import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, GRID = "#1f2430", "#6b7280", "#e5e7eb"


PNG_DPI = 200


class Picture(NamedTuple):
    """A figure in both formats."""

    svg: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Look:
    """How a family of methods is drawn; label_offset in points from the marker."""

    label: str
    colour: str
    marker: str
    label_offset: tuple[int, int]


POLICY = Look("the policy", "#D55E00", "D", (0, 0))
POLICIES = Look("policies, and their front", "#D55E00", "D", (-6, 6))
FAMILIES = {
    "ddim": Look("DDIM-N", "#0072B2", "s", (5, -12)),
    "dpmpp": Look("DPM-Solver++-N", "#009E73", "o", (-5, 5)),
    "euler": Look("Euler-N", "#56B4E9", "s", (5, -12)),
    "dpm-": Look("DPM-Solver-N", "#009E73", "v", (-5, 5)),
    "unipc": Look("UniPC-N", "#0072B2", "v", (5, -12)),
    "pndm": Look("PNDM-N", "#0072B2", "<", (5, -12)),
    "deis": Look("DEIS-N", "#0072B2", ">", (5, -12)),
    "lcm": Look("LCM-N", "#56B4E9", "o", (5, -12)),
    "best-of": Look("best of K at N steps", "#B3589A", "^", (6, 5)),
    "fk": Look("FK steering, K at N", "#E69F00", "P", (6, -12)),
    "dts": Look("tree search, K at N", "#E69F00", "X", (6, 5)),
    "refine": Look("refined once", "#009E73", "h", (6, -12)),
    "stable": Look("stability rule", "#999999", "p", (6, 5)),
    "adadiff": Look("AdaDiff", "#CC79A7", "d", (6, 5)),
    "sag": Look("SAG-N", "#CC79A7", "s", (6, -12)),
    "attend-excite": Look("Attend-and-Excite-N", "#CC79A7", "o", (6, 5)),
    "oracle": Look("a bound (oracle)", "#777777", "*", (-6, 5)),
}
ACTION_COLOURS = {
    "continue": "#56B4E9",
    "stop": "#D55E00",
    "look": "#F0E442",
    "restart": "#CC79A7",
    "refine": "#009E73",
    "leap": "#0072B2",
    "reuse": "#999999",
    "guidance": "#E69F00",
}
STYLE = {
    "font.size": 11.5,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "svg.hashsalt": "addiffusion",
    "svg.fonttype": "path",
}


def action_colour(action: str) -> str:
    """The colour of an action, the same in every figure and strip; grey for one this file does not know."""
    return ACTION_COLOURS.get(action.split("-")[0], "#999999")


def pareto(
    baselines: Mapping[str, Mapping[str, Any]],
    policies: Mapping[str, Mapping[str, Any]],
    quality: str,
    axis: str,
) -> Picture:
    """Mean quality against mean `nfe` or `cost`, with 95% intervals, and the front of the baselines.

    Several policies are named, and have the front of their own mixtures.
    """
    points = [
        Point(name, each[axis], each["quality"]) for name, each in baselines.items() if not each["bound"]
    ]
    vertices = upper_envelope(points)
    last = max(each[axis] for each in [*baselines.values(), *policies.values()])
    costs = np.linspace(vertices[0].cost, last, 300)
    front = envelope_weights(vertices, costs) @ np.array([vertex.quality for vertex in vertices])
    with canvas(5.2, 4.3) as (figure, axes):
        axes.plot(costs, front, color=FAINT, linewidth=1.2, zorder=1, label="front of fixed baselines")
        for family, look in FAMILIES.items():
            members = {name: each for name, each in baselines.items() if _family(name) == family}
            if members:
                _interval_points(axes, list(members.values()), axis, look, size=7)
            for name, each in members.items():
                _name(axes, _short(name), each, axis, look)
        if len(policies) > 1:
            own = upper_envelope(
                [Point(name, each[axis], each["quality"]) for name, each in policies.items()]
            )
            axes.plot(
                [point.cost for point in own],
                [point.quality for point in own],
                color=POLICIES.colour,
                linewidth=1.2,
                zorder=2,
            )
            for name, each in policies.items():
                _name(axes, _clipped(name), each, axis, POLICIES)
        shown = POLICY if len(policies) == 1 else POLICIES
        _interval_points(axes, list(policies.values()), axis, shown, size=10 if len(policies) == 1 else 8)
        axes.set_xlabel("NFE an image" if axis == "nfe" else "NFE an image, looks included at their price")
        axes.set_ylabel(quality)
        axes.set_xlim(0, 1.05 * last)
        axes.margins(y=0.09)
        axes.legend(loc="lower right", handlelength=1.4, borderaxespad=0.2)
        return rendered(figure)


def nfe_per_tier(summary: Mapping[str, Any], rows: Sequence[ImageRow]) -> Picture:
    """How the policy's NFE are spread within each tier; without tiers, over all images."""
    tiers = list(summary["policy"]["per_tier"])
    groups = {f"tier {tier}": [row.nfe for row in rows if row.tier == tier] for tier in tiers}
    return nfe_per_group(groups or {"all": [row.nfe for row in rows]})


def nfe_per_group(groups: Mapping[str, Sequence[int]]) -> Picture:
    """How NFE are spread within each group, the first at the bottom; no group is empty."""
    with canvas(5.2, 0.75 * len(groups) + 1.3) as (figure, axes):
        highest = max(max(values) for values in groups.values())
        bins = np.arange(0, highest + 2) - 0.5
        tallest = max(float(np.histogram(values, bins)[0].max() / len(values)) for values in groups.values())
        for level, values in enumerate(groups.values()):
            share = np.histogram(values, bins)[0] / len(values) / tallest * 0.8
            axes.bar(bins[:-1] + 0.5, share, width=0.92, bottom=level, color="#F3C5A3", zorder=2)
            mean = float(np.mean(values))
            axes.plot([mean, mean], [level, level + 0.8], color=POLICY.colour, linewidth=2, zorder=3)
            axes.annotate(
                f"{mean:.1f}",
                (mean, level + 0.8),
                textcoords="offset points",
                xytext=(4, -8),
                fontsize=9,
                fontweight="bold",
                color=POLICY.colour,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                zorder=4,
            )
        axes.set_yticks([level + 0.3 for level in range(len(groups))])
        axes.set_yticklabels([_clipped(name) for name in groups], color=INK)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(-0.05, len(groups))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(left=0)
        axes.set_xlabel("NFE an image (bars: share of images, line: mean)")
        return rendered(figure)


def quality_trajectories(traces: Sequence[Trace], quality: str) -> Picture:
    """The preview's quality over NFE, a thin line an image, and the mean; a drop is a restart or a bad step.

    The mean at an NFE is over all traced images, each at its last value so far.
    """
    with canvas(5.2, 3.8) as (figure, axes):
        last = max(trace.nfe[-1] for trace in traces)
        grid = np.arange(min(trace.nfe[0] for trace in traces), last + 1)
        held = np.empty((len(traces), len(grid)))
        for line, trace in enumerate(traces):
            axes.step(trace.nfe, trace.quality, where="post", color="#56B4E9", alpha=0.35, linewidth=0.9)
            place = np.searchsorted(trace.nfe, grid, side="right") - 1
            held[line] = np.asarray(trace.quality)[np.clip(place, 0, None)]
        axes.plot(grid, held.mean(0), color=POLICY.colour, linewidth=2.2, label="mean of what there is")
        ends = np.array([(trace.nfe[-1], trace.quality[-1]) for trace in traces])
        axes.plot(ends[:, 0], ends[:, 1], "o", color=INK, markersize=3.5, label="returned")
        axes.set_xlabel("NFE spent")
        axes.set_ylabel(f"{quality} of the preview")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower right")
        return rendered(figure)


def actions_over_decisions(rows: Sequence[ImageRow], action_names: Sequence[str]) -> Picture:
    """Shares of the actions among the images that take an i-th decision, and how many images that are."""
    longest = max(len(row.actions) for row in rows)
    taken = [
        Counter(row.actions[index] for row in rows if index < len(row.actions)) for index in range(longest)
    ]
    deciding_I = np.array([counts.total() for counts in taken])
    shares = {name: np.array([counts[name] for counts in taken]) / deciding_I for name in action_names}
    with canvas(5.2, 3.6) as (figure, axes):
        index_I = np.arange(1, longest + 1)
        _stacked(axes, index_I, shares)
        axes.plot(
            index_I,
            deciding_I / len(rows),
            color=INK,
            linewidth=1.8,
            marker=".",
            label="images still deciding",
        )
        axes.set_xlabel("decision of an image")
        _legend_above(axes)
        return rendered(figure)


def actions_over_training(iterations: Sequence[int], shares: Mapping[str, Sequence[float]]) -> Picture:
    """Shares of the actions in each iteration of training."""
    with canvas(5.2, 3.2) as (figure, axes):
        _stacked(axes, np.array(iterations), {name: np.array(values) for name, values in shares.items()})
        axes.set_xlabel("iteration")
        _legend_above(axes)
        return rendered(figure)


def training_curves(iterations: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Picture:
    """One small panel a curve, over iterations, with its running mean."""
    columns = 2
    lines = -(-len(curves) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 1.6 * lines + 0.2), layout="constrained")
        FigureCanvasSVG(figure)
        for place, (name, values) in enumerate(curves.items()):
            axes = figure.add_subplot(lines, columns, place + 1)
            axes.plot(iterations, values, color="#56B4E9", linewidth=1)
            window = max(1, len(values) // 12)
            smooth = np.convolve(values, np.ones(window) / window, "valid")
            axes.plot(iterations[window - 1 :], smooth, color="#0072B2", linewidth=1.8)
            axes.set_title(name, fontsize=10, loc="left", color=INK)
            axes.tick_params(labelsize=8.5)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        return rendered(figure)


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of so many inches with one pair of axes, in the style of all."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def _interval_points(
    axes: Axes, methods: Sequence[Mapping[str, Any]], axis: str, look: Look, *, size: float
) -> None:
    quality = np.array([method["quality"] for method in methods])
    low, high = np.array([method["ci95"] for method in methods]).T
    axes.errorbar(
        [method[axis] for method in methods],
        quality,
        yerr=[quality - low, high - quality],
        fmt=look.marker,
        color=look.colour,
        markersize=size,
        markeredgecolor="white",
        markeredgewidth=0.8,
        elinewidth=1.1,
        capsize=2,
        label=look.label,
        zorder=5 if look in (POLICY, POLICIES) else 3,
    )


def _name(axes: Axes, text: str, method: Mapping[str, Any], axis: str, look: Look) -> None:
    axes.annotate(
        text,
        (method[axis], method["quality"]),
        textcoords="offset points",
        xytext=look.label_offset,
        ha="left" if look.label_offset[0] > 0 else "right",
        fontsize=8.5,
        color=look.colour,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=6,
    )


def _stacked(axes: Axes, places: NDArray[np.int64], shares: Mapping[str, NDArray[np.float64]]) -> None:
    """Stacked bars that touch, one for each place; actions that are never taken are left out."""
    bottom = np.zeros(len(places))
    for name, share in shares.items():
        if share.any():
            axes.bar(places, share, 1.0, bottom, color=action_colour(name), hatch=_hatch(name), label=name)
            bottom = bottom + share
    axes.set_ylim(0, 1)
    axes.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=False)


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1.2, handlelength=1.4)


def _family(name: str) -> str:
    return next(family for family in FAMILIES if name.startswith(family))


def _short(name: str) -> str:
    """What is left of a baseline's name once its family is known: N, K@N, or what a bound chooses."""
    if name.startswith("adadiff"):
        return ""
    if name.startswith("oracle-") and not name.startswith("oracle-best-of"):
        return name.removeprefix("oracle-").partition("@")[0]
    return name.removeprefix("oracle-").removeprefix("best-of-").split("-")[-1].removeprefix("refine@")


def _hatch(name: str) -> str:
    return {"leap": "//", "restart": "xx", "look": ".."}.get(name.split("-")[0], "")


def _clipped(text: str, longest: int = 18) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def rendered(figure: Figure) -> Picture:
    """The figure in both formats."""
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=PNG_DPI)
    return Picture(svg.getvalue(), png.getvalue())
