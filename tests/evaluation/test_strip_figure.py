"""Decision strips as a picture: which are drawn, and that it is a picture of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from evaluation.strip_figure import decisions
from evaluation.strips import Frame, Strip, encode_png

RED = np.full((16, 16, 3), (200, 0, 0), np.uint8)


def strip(decided: int, prompt: str = "a red square") -> Strip:
    frame = Frame("continue", 0, 1, 0, None, encode_png(RED))
    return Strip(prompt, "1", 0, 1.0, decided, 0, (frame,) * decided, encode_png(RED))


def size(strips: list[Strip]) -> tuple[int, int]:
    picture = decisions(strips)
    assert picture is not None
    assert picture.svg.count("<image") == sum(len(each.frames) + 1 for each in strips)
    with Image.open(io.BytesIO(picture.png)) as image:
        return image.size


def test_a_picture_has_a_row_for_each_strip_and_a_cell_for_each_decision() -> None:
    width, height = size([strip(3)])
    two, wide = size([strip(3), strip(2)]), size([strip(7)])
    assert (two[0], wide[1]) == (width, height)
    assert two[1] == pytest.approx(2 * height, rel=0.05)
    assert wide[0] == pytest.approx(2 * width, rel=0.05)


def test_a_long_prompt_makes_no_cell_wider() -> None:
    assert size([strip(3, "a red square " * 20)]) == size([strip(3)])


def test_what_does_not_fit_is_left_out_and_nothing_is_no_picture() -> None:
    assert decisions([strip(40)]) is None
    assert decisions([]) is None
    assert decisions([strip(40), strip(2)]) == decisions([strip(2)])
    cheap, middle, dear = strip(1), strip(2), strip(9)
    assert decisions([cheap, cheap, middle, middle, dear]) == decisions([cheap, middle, dear])
