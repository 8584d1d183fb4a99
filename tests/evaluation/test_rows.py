"""Rows and strips on disk: whole or absent, the same when read again, damage named."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.errors import UserError
from actors.files import written_aside
from evaluation.rows import read_rows, write_rows
from evaluation.strips import LARGEST_SIDE, Frame, Strip, encode_png, pick, read_strips, write_strips
from tests.evaluation import synthetic

ROWS = synthetic.policy_rows(synthetic.requests(prompts_per_tier=2), 0.6)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.parquet"
    odd = [
        synthetic.row("policy", synthetic.requests(1)[0], 0.5, 5, prompt="“ü”\n\x00", tier=None, actions=())
    ]
    write_rows(path, [*ROWS, *odd])
    assert read_rows(path) == [*ROWS, *odd]
    assert [each.name for each in path.parent.iterdir()] == ["rows.parquet"]


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"not parquet at all" * 100])
def test_a_damaged_table_is_one_line_that_says_what_to_do(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(damage)
    with pytest.raises(UserError, match="delete it") as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)


def test_a_table_that_was_deleted_is_not_to_be_deleted_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.parquet: no such file; run `addiffusion evaluate` again"):
        read_rows(tmp_path / "rows.parquet")


def test_nothing_half_written_stays_and_the_old_file_does(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with written_aside(path) as aside:
            aside.write_text("new, but on")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_strips_are_picked_from_the_cheapest_to_the_dearest() -> None:
    chosen = pick(ROWS, 5)
    costs = sorted(row.nfe for row in ROWS)
    assert [row.nfe for row in chosen] == [
        costs[round(share * (len(costs) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert len(pick(ROWS[:2], 6)) == 2
    assert pick(ROWS, 0) == []


def test_strips_come_back_and_pictures_are_small(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (512, 256, 3)).astype(np.uint8)
    frame = Frame("look", 3, 4, 1, 0.25, encode_png(picture))
    strip = Strip("a <b>", None, 3, 0.5, 4, 1, (frame, frame), encode_png(picture[:64, :64]))
    write_strips(tmp_path / "strips.json", [strip])
    (back,) = read_strips(tmp_path / "strips.json")
    assert back == strip
    assert Image.open(io.BytesIO(base64.b64decode(back.frames[0].png))).size == (
        LARGEST_SIDE // 2,
        LARGEST_SIDE,
    )
    same = np.asarray(Image.open(io.BytesIO(base64.b64decode(back.png))))
    np.testing.assert_array_equal(same, picture[:64, :64])
    (tmp_path / "strips.json").write_text('[{"prompt": 1}]')
    with pytest.raises(UserError, match="run the evaluation again"):
        read_strips(tmp_path / "strips.json")
