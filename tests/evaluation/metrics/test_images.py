"""Stored images: what can be read, in which order, and what is said of what cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.errors import UserError
from evaluation.metrics.images import by_seed_number, decode, encode, read_encoded, read_sets
from tests.evaluation.metrics.stored import scenes, write_table


def test_a_table_gives_its_methods_images_pixel_by_pixel_with_their_costs(tmp_path: Path) -> None:
    rows = [{**row, "nfe": 7 + index, "tier": "2"} for index, row in enumerate(scenes(3, 4))]
    path = write_table(tmp_path / "images.parquet", {"policy": rows, "ddim-50": scenes(3, 4, wrong=True)})
    policy, ddim = read_sets(path)
    assert (policy.name, ddim.name) == ("policy", "ddim-50")
    assert [(one.prompt, one.seed, one.tier, one.nfe) for one in policy.records] == [
        (row["prompt"], row["seed"], "2", row["nfe"]) for row in rows
    ]
    for record, row in zip(reversed(policy.records), reversed(rows), strict=True):
        np.testing.assert_array_equal(decode(read_encoded(record), record), row["image"])
    assert ddim.records[0].nfe is None
    assert ddim.has_prompts


def test_tables_of_a_folder_are_read_together(tmp_path: Path) -> None:
    rows = scenes(4, 1)
    write_table(tmp_path / "parts" / "b.parquet", {"policy": rows[2:]})
    write_table(tmp_path / "parts" / "a.parquet", {"policy": rows[:2]})
    (found,) = read_sets(tmp_path / "parts")
    assert [record.prompt for record in found.records] == [row["prompt"] for row in rows]


def test_parts_that_overlap_are_one_set_as_long_as_they_agree(tmp_path: Path) -> None:
    rows = scenes(4, 1)
    write_table(tmp_path / "parts" / "a.parquet", {"policy": rows[:3]})
    write_table(tmp_path / "parts" / "b.parquet", {"policy": rows[2:]})
    (found,) = read_sets(tmp_path / "parts")
    assert [record.prompt for record in found.records] == [row["prompt"] for row in rows]
    write_table(tmp_path / "parts" / "c.parquet", {"policy": scenes(4, 1, wrong=True)[:1]})
    with pytest.raises(UserError, match=r"c.parquet: another image of 'policy'"):
        read_sets(tmp_path / "parts")


def test_a_folder_of_pictures_is_a_set_with_or_without_a_list(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    picture = scenes(1, 1)[0]["image"]
    Image.fromarray(picture).save(folder / "b.png")
    Image.fromarray(picture).save(folder / "a.jpg")
    (plain,) = read_sets(folder)
    assert [record.path.name for record in plain.records] == ["a.jpg", "b.png"]
    assert (plain.name, plain.has_prompts) == ("real", False)

    lines = [{"file_name": "a.jpg", "prompt": "a cat", "seed": 3}, {"file_name": "b.png", "prompt": "a dog"}]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (listed,) = read_sets(folder)
    assert [(record.prompt, record.seed) for record in listed.records] == [("a cat", 3), ("a dog", 0)]
    np.testing.assert_array_equal(decode(read_encoded(listed.records[1]), listed.records[1]), picture)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["a"], "seed": [1]}, "no column 'png'; needed: prompt, seed, png"),
        (
            {"prompt": ["a", "a"], "seed": [1, 1], "png": [b"x", b"y"]},
            "another image of 'table' for 'a', seed 1",
        ),
        ({"prompt": [], "seed": [], "png": []}, "no images in it"),
    ],
)
def test_tables_that_are_none_are_named(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    with pytest.raises(UserError, match=message):
        read_sets(tmp_path / "table.parquet")


def test_damage_is_named_with_the_image_it_is_in(tmp_path: Path) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match=r"torn.parquet: not a readable table"):
        read_sets(tmp_path / "torn.parquet")
    table = {"prompt": ["a cat"], "seed": [1], "png": [encode(scenes(1, 1)[0]["image"])[:40]]}
    pq.write_table(pa.table(table), tmp_path / "half.parquet")
    (half,) = read_sets(tmp_path / "half.parquet")
    with pytest.raises(UserError, match=r"'a cat', seed 1\): not a readable picture"):
        decode(read_encoded(half.records[0]), half.records[0])
    with pytest.raises(UserError, match="no such file or folder"):
        read_sets(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in it"):
        read_sets(tmp_path / "empty")


def test_seed_numbers_take_one_image_of_every_prompt(tmp_path: Path) -> None:
    rows = scenes(3, 2)
    (found,) = read_sets(write_table(tmp_path / "t.parquet", {"m": [*rows[::-1]]}))
    groups = by_seed_number(found.records)
    assert [sorted(found.records[index].seed % 100 for index in group) for group in groups] == [
        [0] * 3,
        [1] * 3,
    ]
    assert all(len({found.records[index].prompt for index in group}) == 3 for group in groups)
    assert by_seed_number(found.records[:5]) == [[0, 1, 2, 3, 4]], "unequally many seeds: all in one"
