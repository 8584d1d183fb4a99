"""The tokenizer: one token a word, nothing lost, the same after a trip to disk."""

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from shapes.captions import TIERS, VOCABULARY, sample_spec
from shapes.tokenizer import MAX_LENGTH, apply_merges, build_tokenizer, merges_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CLIPTokenizer:
    return build_tokenizer(folder)


def test_every_word_is_one_token_of_its_own(tokenizer: CLIPTokenizer) -> None:
    pieces = {word: tokenizer.tokenize(word) for word in VOCABULARY}
    assert pieces == {word: [word + "</w>"] for word in VOCABULARY}
    assert len({tokenizer.convert_tokens_to_ids(word + "</w>") for word in VOCABULARY}) == len(VOCABULARY)


def test_captions_fit_and_read_back(tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(0)
    for index in range(200):
        caption = sample_spec(rng, TIERS[index % 4]).caption
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(caption.split()) + 2 <= MAX_LENGTH
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption


def test_padding_and_truncation_give_the_model_length(tokenizer: CLIPTokenizer) -> None:
    for text in ("", "a red circle on a plain background", "red " * 40):
        ids = tokenizer(text, padding="max_length", truncation=True).input_ids
        assert len(ids) == MAX_LENGTH == tokenizer.model_max_length
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id


def test_unknown_words_become_pieces(tokenizer: CLIPTokenizer) -> None:
    for word in ("pink", "circular", "zebra", "crossing"):
        pieces = tokenizer.tokenize(word)
        assert len(pieces) > 1
        assert "".join(pieces).removesuffix("</w>") == word
        assert tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(pieces)


def test_reloading_gives_the_same_ids(tokenizer: CLIPTokenizer, folder: Path) -> None:
    again = CLIPTokenizer.from_pretrained(folder)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.model_max_length == MAX_LENGTH
    assert sorted(again.get_vocab().values()) == list(range(len(again)))


def test_merges_never_break_up_another_word() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        words = sorted({"".join(rng.choice(list("abc"), rng.integers(1, 8))) for _ in range(12)})
        merges = merges_for(words)
        for word in words:
            assert apply_merges([*word[:-1], word[-1] + "</w>"], merges) == [word + "</w>"]
