"""Decision strips: a few images, shown at every decision with the action taken there.

Always true here: which images are shown is a rule, not a choice: those at evenly spaced ranks of the
policy's NFE, from the cheapest to the dearest, and the largest failures. A strip file is whole or absent, and
holds plain PNGs.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from actors.contracts import Images
from actors.errors import UserError
from actors.files import written_aside
from evaluation.rows import ImageRow
from evaluation.traces import Traced

STRIPS_FILE = Path("evaluation/strips.json")
"""Where a run keeps its strips."""

LARGEST_SIDE = 192
"""Pixels; larger pictures are scaled down, so that a report stays small enough to be mailed."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What was there at one decision, and what was decided. png is base64.

    quality: the metric's, which the policy does not see; mask: of a refinement, as a png, white where it is
    denoised again.
    """

    action: str
    step_index: int
    nfe: int
    attempt: int
    image_reward: float | None
    png: str
    quality: float | None = None
    mask: str | None = None


@dataclass(frozen=True, slots=True)
class Strip:
    """One image's decisions, and what was returned; of a failure also what it lost, and against what."""

    prompt: str
    tier: str | None
    seed: int
    quality: float
    nfe: int
    looks: int
    frames: tuple[Frame, ...]
    png: str
    loss: float | None = None
    against: str | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """An image that is to be shown, as itself or as a failure."""

    row: ImageRow
    loss: float | None = None
    against: str | None = None


def pick(rows: Sequence[ImageRow], count: int) -> list[ImageRow]:
    """`count` rows at evenly spaced ranks of NFE; ties in the order they were asked for."""
    by_nfe = sorted(rows, key=lambda row: row.nfe)
    ranks = np.linspace(0, len(by_nfe) - 1, min(count, len(by_nfe))).round().astype(int)
    return [by_nfe[rank] for rank in ranks]


def strip(shown: Shown, traced: Traced, place: int) -> Strip:
    """The strip of an image that was traced, at this place among the traced ones."""
    made, trace = traced.made, traced.traces[place]
    result = made.episodes[place]
    assert len(result.preview_images) == len(result.decisions), "one preview a decision"
    frames = []
    for index, (decision, preview) in enumerate(zip(result.decisions, result.preview_images, strict=True)):
        mask = traced.masks.get((result.request, index))
        frames.append(
            Frame(
                action=decision.action,
                step_index=decision.step_index,
                nfe=decision.nfe,
                attempt=decision.attempt,
                image_reward=decision.image_reward,
                png=encode_png(preview),
                quality=trace.quality[index],
                mask=None if mask is None else encode_png(mask),
            )
        )
    row = made.rows[place]
    return Strip(
        row.prompt,
        row.tier,
        row.seed,
        row.quality,
        result.nfe,
        result.looks,
        tuple(frames),
        encode_png(made.images_BHWC[place]),
        shown.loss,
        shown.against,
    )


def write_strips(path: Path, strips: Sequence[Strip]) -> None:
    """Write strips as JSON, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps([asdict(each) for each in strips]), encoding="utf-8")


def read_strips(path: Path) -> list[Strip]:
    """Strips of a file that `write_strips` wrote; UserError if it is damaged."""
    try:
        return [
            Strip(**{**each, "frames": tuple(Frame(**frame) for frame in each["frames"])})
            for each in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a readable strip file; run the evaluation again") from error


def encode_png(image_HWC: Images) -> str:
    """A PNG of at most LARGEST_SIDE pixels a side, as base64."""
    picture = Image.fromarray(image_HWC)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
