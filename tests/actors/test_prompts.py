"""Prompts: the three sources, and one line for everything that can be wrong with a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from actors.errors import UserError
from actors.prompts import Prompt, load_prompts
from shapes.captions import parse, split_of


def test_text_file_keeps_its_order(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("  an owl \n\nzwei Füchse\nthe sky\n", encoding="utf-8")
    assert load_prompts(str(path)) == [Prompt("an owl"), Prompt("zwei Füchse"), Prompt("the sky")]
    assert load_prompts(str(path), limit=2) == [Prompt("an owl"), Prompt("zwei Füchse")]


def test_json_lines_carry_tiers(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "an owl", "tier": 2, "id": 7}\n{"prompt": "a fox"}\n')
    assert load_prompts(str(path)) == [Prompt("an owl", "2"), Prompt("a fox")]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_shapes_gives_captions_of_one_split_tier_by_tier_in_turn(split: str) -> None:
    prompts = load_prompts("shapes", split=split, limit=42, seed=3)
    assert [prompt.tier for prompt in prompts[:6]] == ["1", "2", "3", "4", "1", "2"]
    assert {split_of(prompt.text) for prompt in prompts} == {split}
    assert all(str(parse(prompt.text).tier) == prompt.tier for prompt in prompts)
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 42
    assert load_prompts("shapes", split=split, limit=42, seed=3) == prompts
    assert load_prompts("shapes", split=split, limit=42, seed=4) != prompts


def test_without_a_limit_tiers_are_equally_many() -> None:
    counts = Counter(prompt.tier for prompt in load_prompts("shapes", split="validation"))
    assert len(counts) == 4
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "holds no prompt; accepted: one prompt a line"),
        ("blank.txt", b"\n  \n\n", "holds no prompt"),
        ("binary.txt", b"\x89PNG\r\n\x1a\n\xff\xfe", "not text; accepted: UTF-8"),
        ("zeros.txt", b"an owl\x00\x00\n", "not text; accepted: UTF-8"),
        ("long.txt", b"a fox\n" + b"word " * 5000, "line 2: 5000 words; accepted: at most 300"),
        ("image.png", b"an owl", "accepted: shapes, or a .txt or .jsonl file"),
        ("broken.jsonl", b'{"prompt": "owl"}\n{"prompt": \n', "line 2: not JSON"),
        ("list.jsonl", b'["owl"]\n', "line 1: no `prompt`; accepted: objects with a text `prompt`"),
        ("number.jsonl", b'{"prompt": 4}\n', "line 1: no `prompt`"),
        ("blank.jsonl", b'{"prompt": "  "}\n', "line 1: no `prompt`"),
    ],
)
def test_bad_files_are_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_prompts(str(path))
    assert message in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_folder_and_impossible_options_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    for path, message in ((tmp_path / "no.txt", "No such file"), (tmp_path / "folder.txt", "Is a directory")):
        with pytest.raises(UserError, match=message):
            load_prompts(str(path))
    with pytest.raises(UserError, match=r"prompts.split is 'dev'; accepted: train, validation, test"):
        load_prompts("shapes", split="dev")
    with pytest.raises(UserError, match=r"prompts.limit is 0; accepted"):
        load_prompts("shapes", limit=0)
    with pytest.raises(UserError, match=r"prompts.limit is 100000; accepted: fewer"):
        load_prompts("shapes", limit=100_000)
