"""TensorBoard's files, read back record by record, and the list of metrics that the documentation has."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from actors.contracts import EpisodeRequest
from actors.held_out import HeldOutEpisode
from learner.curves import METRICS, PICTURES_TAG, TensorBoardCurves
from learner.pictures import _font, decisions_line, write_grid

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def records(folder: Path) -> list[Any]:
    """All events: TFRecord is a length of 8 bytes, a checksum of 4, the data, a checksum of 4."""
    events = []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            events.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += length + 16
    return events


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    return [
        (event.step, value.tag, round(value.simple_value, 6))
        for event in records(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def fail(error: OSError) -> None:
    raise AssertionError(error)


def row(iteration: int, value: float) -> dict[str, Any]:
    return {"iteration": iteration, "time": 1e9 + iteration, "return": value, "decisions": 7}


def test_points_stand_at_their_iterations_and_a_resume_hides_what_is_done_again(tmp_path: Path) -> None:
    first = TensorBoardCurves(tmp_path, 1, fail)
    for iteration in (1, 2, 3):
        first.log(row(iteration, 0.5))
    resumed = TensorBoardCurves(tmp_path, 3, fail)
    resumed.log(row(3, 0.25))
    resumed.close()
    assert scalars(tmp_path) == [
        (1, "return", 0.5),
        (2, "return", 0.5),
        (3, "return", 0.5),
        (3, "return", 0.25),
    ]
    starts = [event.step for event in records(tmp_path) if event.HasField("session_log")]
    assert starts == [1, 3], "from here on TensorBoard forgets what came before"


def test_what_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    told: list[OSError] = []
    folder.write_text("in the way")
    curves = TensorBoardCurves(folder, 1, told.append)
    curves.log(row(1, 0.5))
    curves.log(row(2, 0.5))
    assert len(told) == 1, "said once, not at every iteration"
    folder.unlink()
    curves.log(row(3, 0.5))
    assert [step for step, _, _ in scalars(folder)] == [1, 2, 3]


def episode(index: int, shade: int) -> HeldOutEpisode:
    image = np.full((8, 8, 3), shade, np.uint8)
    request = EpisodeRequest(f"prompt {index} " + "with many words " * 20, index)
    return HeldOutEpisode(request, 0.5, 10 + index, 10.5, ("continue", "continue", "look", "stop"), image)


def test_a_grid_shows_every_image_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    shades = [0, 40, 80, 120, 160]
    write_grid(path, "title", [episode(index, shade) for index, shade in enumerate(shades)])
    grid = np.asarray(Image.open(path).convert("L"))
    columns, rows = 4, 2
    width, height = (grid.shape[1] - 12) // columns, (grid.shape[0] - 39) // rows
    for index, shade in enumerate(shades):
        top, left = 39 + index // columns * height, 12 + index % columns * width
        assert (grid[top + 5 : top + 200, left + 5 : left + 200] == shade).all()
        written = grid[top + 226 : top + height - 12, left : left + 200]
        assert (written < 128).any(), "the prompt stands below"
    curves = TensorBoardCurves(tmp_path / "tensorboard", 1, fail)
    curves.picture(path, {"iteration": 4, "time": 1e9})
    (picture,) = [value.image for event in records(tmp_path / "tensorboard") for value in event.summary.value]
    assert picture.encoded_image_string == path.read_bytes()
    assert (picture.width, picture.height) == (grid.shape[1], grid.shape[0])


def test_a_grid_has_letters_for_what_it_writes() -> None:
    """A font shows the same box for all that it lacks."""

    def drawn(letter: str) -> bytes:
        return bytes(_font(20).getmask(letter))

    for letter in (
        decisions_line(["continue"] * 3)
        + "caf\u00e9 \u2013 \u017c\u00f3\u0142w \u043a\u043e\u0442 \u03b1\u00b7\u2026"
    ):
        assert drawn(letter) != drawn("\uffff"), letter


def test_decisions_are_counted_where_they_repeat() -> None:
    assert decisions_line(["continue", "continue", "look", "stop"]) == "continue×2, look, stop"
    assert decisions_line([]) == ""


def test_every_metric_is_documented_with_its_unit_and_nothing_else_is() -> None:
    table = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", DOCS.read_text(encoding="utf-8"), flags=re.M)
    assert {name: unit.strip() for name, unit in table} == METRICS
    assert PICTURES_TAG in DOCS.read_text(encoding="utf-8")
