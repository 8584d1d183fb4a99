"""A grid of held-out images, each with its prompt, what it cost and what was decided, as one PNG.

Always true here: the same images in the same places in every grid of a run; a file is whole or absent.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from actors.files import written_aside
from actors.held_out import HeldOutEpisode

FOLDER = "pictures"
_SIDE = 224
"""Pixels of one image in the grid."""
_COLUMNS = 4
_MARGIN = 12
_LINE = 15
_LETTERS = 36
_LINES = 7
_INK, _GREY, _PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


def write_grid(path: Path, title: str, episodes: Sequence[HeldOutEpisode]) -> None:
    """Draw the episodes that have an image."""
    shown = [episode for episode in episodes if episode.image_HWC is not None]
    assert shown, "a grid of no images"
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    cell = (_SIDE + _MARGIN, _SIDE + _LINES * _LINE + _MARGIN)
    size = (_MARGIN + columns * cell[0], 2 * _MARGIN + _LINE + rows * cell[1])
    grid = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(grid)
    draw.text((_MARGIN, _MARGIN // 2), title, fill=_INK, font=_font(12))
    for index, episode in enumerate(shown):
        row, column = divmod(index, columns)
        corner = (_MARGIN + column * cell[0], 2 * _MARGIN + _LINE + row * cell[1])
        _draw_cell(grid, draw, corner, episode)
    with written_aside(path) as aside:
        grid.save(aside, format="PNG", optimize=True)


def decisions_line(actions: Sequence[str]) -> str:
    """Actions in their order, repeated ones counted: `continue×3, look, stop`."""
    runs = [(name, len(list(group))) for name, group in groupby(actions)]
    return ", ".join(name if count == 1 else f"{name}×{count}" for name, count in runs)


def _draw_cell(
    grid: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], episode: HeldOutEpisode
) -> None:
    assert episode.image_HWC is not None
    image = Image.fromarray(episode.image_HWC)
    smooth = Image.Resampling.LANCZOS if max(image.size) > _SIDE else Image.Resampling.NEAREST
    scale = _SIDE / max(image.size)
    grid.paste(image.resize((round(image.width * scale), round(image.height * scale)), smooth), corner)
    prompt = textwrap.wrap(episode.request.prompt, _LETTERS, max_lines=3, placeholder=" …")
    cost = f"NFE {episode.nfe} · cost {episode.cost:.1f} · score {episode.quality:.2f}"
    decided = textwrap.wrap(decisions_line(episode.actions), _LETTERS, max_lines=3, placeholder=" …")
    left, top = corner[0], corner[1] + _SIDE + 4
    lines = [(line, _INK) for line in prompt] + [(line, _GREY) for line in (cost, *decided)]
    for number, (line, colour) in enumerate(lines):
        draw.text((left, top + number * _LINE), line, fill=colour, font=_font(10))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Pillow's own font has a box for "é", and for "×"."""
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
