"""Prompts: every source, and one line for everything that can be wrong with one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from actors.errors import UserError
from actors.prompts import Columns, Prompt, load_prompts
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
        ("zeros.txt", b"an owl\x00\x00\n", "line 1: not text (a zero byte); accepted"),
        ("long.txt", b"a fox\n" + b"word " * 5000, "line 2: 5000 words; accepted: at most 300"),
        ("image.png", b"an owl", "accepted: shapes, hf:OWNER/NAME, or a .txt, "),
        ("broken.jsonl", b'{"prompt": "owl"}\n{"prompt": \n', "line 2: not JSON"),
        ("list.jsonl", b'["owl"]\n', "line 1: not an object; accepted: objects with `prompt`"),
        ("other.jsonl", b'{"text": "owl"}\n', "line 1: no prompt column `prompt`; accepted: one of text"),
        ("number.jsonl", b'{"prompt": 4}\n', "line 1: no `prompt`"),
        ("blank.jsonl", b'{"prompt": "  "}\n', "line 1: no `prompt`; accepted: a text `prompt`"),
        ("half.jsonl", b'{"prompt": "an \\ud83e owl"}\n', "line 1: not text (half of a surrogate pair)"),
        ("tier.jsonl", b'{"prompt": "owl", "tier": "\\ud83e"}\n', "line 1: not text (half of a surrogate"),
        ("deep.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("deep.json", b"[" * 100_000, "not JSON"),
        ("empty.tsv", b"", "no prompt column `prompt`; accepted: one of none"),
        ("header.tsv", b"Prompt\tNote\n", "holds no prompt"),
        (
            "other.tsv",
            b"caption\turl\nan owl\tx\n",
            "line 1: no prompt column `prompt`; accepted: one of caption, url",
        ),
        (
            "wide.tsv",
            b"prompt\ttier\nowl\t1\nfox\t1\t2\n",
            "line 3: 3 fields; accepted: 2, as the header has",
        ),
        ("gap.tsv", b"prompt\ttier\n\t1\n", "line 2: no `prompt`"),
        ("torn.parquet", b"PAR1 and no more", "damaged, or not Parquet"),
        ("empty.parquet", b"", "accepted: "),
        ("list.json", b"[1]", "no `annotations`; accepted: captions of COCO"),
        ("torn.json", b'{"annotations": [', "not JSON"),
        ("binary.json", b"\xff\xfe", "not text; accepted: UTF-8"),
        ("ids.json", b'{"annotations": [{"caption": "owl"}]}', "annotation 1: no `image_id` and `id`"),
        (
            "blank.json",
            b'{"annotations": [{"id": 1, "image_id": 1, "caption": " "}]}',
            "annotation 1: no `caption`",
        ),
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


# -- formats ------------------------------------------------------------------------------------------


def test_equal_prompts_count_once_and_towards_no_limit(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "owl", "tier": 1}, {"prompt": " owl "}, {"prompt": "Owl"}, {"prompt": "fox"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load_prompts(str(path)) == [Prompt("owl", "1"), Prompt("Owl"), Prompt("fox")]
    assert load_prompts(str(path), limit=2) == [Prompt("owl", "1"), Prompt("Owl")]


def test_nothing_is_read_beyond_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "owl"}\n{"prompt": "fox"}\n{"prompt": \n')
    assert load_prompts(str(path), limit=2) == [Prompt("owl"), Prompt("fox")]
    with pytest.raises(UserError, match="line 3: not JSON"):
        load_prompts(str(path), limit=3)


def test_parti_prompts_keep_challenge_and_category(tmp_path: Path) -> None:
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text(
        "Prompt\tCategory\tChallenge\tNote\n"
        "bond\tAbstract\tBasic\tBiology-inspired\n"
        'a sign that says "STOP"\tOutdoor Scenes\tWriting & Symbols\t\n'
        "an owl\tAnimals\tBasic\n"  # an editor has taken the last tab
    )
    assert load_prompts(str(path)) == [
        Prompt("bond", "Basic", "Abstract"),
        Prompt('a sign that says "STOP"', "Writing & Symbols", "Outdoor Scenes"),
        Prompt("an owl", "Basic", "Animals"),
    ]
    by_category = load_prompts(str(path), columns=Columns(tier="Category"))
    assert [prompt.tier for prompt in by_category] == ["Abstract", "Outdoor Scenes", "Animals"]


def test_a_tsv_of_pandas_comes_back_as_it_was(tmp_path: Path) -> None:
    """pandas quotes the fields that hold quotes, and writes a byte order mark if it is told to."""
    texts = ['"STOP", it says', 'a "red" owl', "plain", '"whole"']
    table = pandas.DataFrame({"id": [7, 8, 9, 10], "prompt": texts, "tier": [1.0, 2.0, None, 3.0]})
    path = tmp_path / "prompts.tsv"
    table.to_csv(path, sep="\t", index=False, encoding="utf-8-sig")
    assert [prompt.text for prompt in load_prompts(str(path))] == texts


def test_geneval_tags_are_tiers_and_other_tags_are_not(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    lines = [
        {"tag": "counting", "include": [{"class": "owl", "count": 2}], "prompt": "two owls"},
        {"tag": "holiday", "prompt": "a beach"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load_prompts(str(path)) == [Prompt("two owls", "counting"), Prompt("a beach")]


def test_coco_gives_one_caption_an_image_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    annotations = [
        {"id": 40, "image_id": 2, "caption": "a later caption of 2"},
        {"id": 31, "image_id": 9, "caption": "the caption of 9 "},
        {"id": 12, "image_id": 2, "caption": "the first caption of 2"},
        {"id": 90, "image_id": 1, "caption": "the caption of 1"},
    ]
    path = tmp_path / "captions_val2014.json"
    for order in (annotations, annotations[::-1]):
        path.write_text(json.dumps({"info": {}, "images": [], "annotations": order}))
        texts = [prompt.text for prompt in load_prompts(str(path))]
        assert texts == ["the caption of 1", "the first caption of 2", "the caption of 9"]


def test_parquet_takes_named_columns_and_labels_with_gaps(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    columns = {"TEXT": ["owl", "fox"], "level": [2.0, None], "prompt": ["a", "b"], "image": [b"1", b"2"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert load_prompts(str(path)) == [Prompt("a"), Prompt("b")]
    assert load_prompts(str(path), columns=Columns("TEXT", "level")) == [Prompt("owl", "2"), Prompt("fox")]
    with pytest.raises(
        UserError, match="no tier column `tiers`; accepted: one of TEXT, level, prompt, image"
    ):
        load_prompts(str(path), columns=Columns("TEXT", "tiers"))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["owl", None]}), path)
    with pytest.raises(UserError, match="row 2: no `prompt`"):
        load_prompts(str(path))


def test_a_few_prompts_of_a_large_parquet_file_are_a_few_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.parquet"
    texts = [f"a photo of object {number}" for number in range(300_000)]
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts}), path)
    decoded = []
    iterate = pyarrow.parquet.ParquetFile.iter_batches

    def counted(self: Any, **options: Any) -> Iterator[Any]:
        for batch in iterate(self, **options):
            decoded.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", counted)
    assert [prompt.text for prompt in load_prompts(str(path), limit=256)] == texts[:256]
    assert sum(decoded) < 5_000


def test_what_has_no_columns_takes_no_names_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("owl\n")
    for source in (str(path), "shapes"):
        with pytest.raises(UserError, match="which has no columns to name"):
            load_prompts(source, columns=Columns("text"))


# -- the hub ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset as the hub lays one out, with two splits."""
    folder = tmp_path_factory.mktemp("dataset")
    for split, prompts in (("train", ["owl", "fox", "owl"]), ("test", ["hen"])):
        columns = {"Prompt": prompts, "tier": list(range(len(prompts))), "Note": ["x"] * len(prompts)}
        datasets.Dataset.from_dict(columns).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_a_dataset_is_streamed_split_by_split(dataset_folder: Path) -> None:
    source = f"hf:{dataset_folder}"
    assert load_prompts(source) == [Prompt("owl", "0"), Prompt("fox", "1")]
    assert load_prompts(source, split="test") == [Prompt("hen", "0")]
    assert load_prompts(source, columns=Columns("Note")) == [Prompt("x", "0")]


@pytest.mark.parametrize(
    ("split", "columns", "message"),
    [
        ("dev", Columns(), "split 'dev': Bad split: dev. Available splits: \\['train', 'test'\\]"),
        ("train", Columns("caption"), "no prompt column `caption`; accepted: one of Prompt, tier, Note"),
    ],
)
def test_what_a_dataset_lacks_is_one_line(
    dataset_folder: Path, split: str, columns: Columns, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_prompts(f"hf:{dataset_folder}", split=split, columns=columns)
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with HF_HUB_OFFLINE=1; it is read when the libraries are imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"prompts\.source is 'hf:nobody/nothing', split 'train'") as error:
        load_prompts("hf:nobody/nothing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["hf:", "hf:name", "hf:a/b/c/d", "hf:a//b"])
def test_what_is_no_dataset_id_is_one_line(source: str) -> None:
    with pytest.raises(UserError, match="accepted: hf:OWNER/NAME"):
        load_prompts(source)
