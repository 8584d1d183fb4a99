"""Each scorer against its library used directly, one image at a time, from the same folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, BitImageProcessor, CLIPTokenizer, Dinov2Model

from rewards_service.contracts import Scorer
from rewards_service.local import LocalClient
from rewards_service.scorers.aesthetic import AestheticHead, AestheticScorer, load_head, save_head
from rewards_service.scorers.batches import TextCache
from rewards_service.scorers.clip import OpenClipScorer
from rewards_service.scorers.dino import DinoScorer
from rewards_service.scorers.preference import PreferenceScorer, load_preference, save_preference
from rewards_service.scorers.preference_network import PreferenceConfig, PreferenceNetwork
from rewards_service.world import load_scorers

Images = NDArray[np.uint8]


def in_batches(
    scorer: Scorer, images: Images, prompts: list[str], size: int
) -> dict[str, NDArray[np.float32]]:
    """Scores in an order of its own, `size` at a time, and puts the rows back in order."""
    order = np.random.default_rng(size).permutation(len(prompts))
    parts = [
        scorer.score(images[order[at : at + size]], [prompts[i] for i in order[at : at + size]])
        for at in range(0, len(order), size)
    ]
    back = np.argsort(order)
    return {name: np.concatenate([part[name] for part in parts])[back] for name in scorer.outputs}


@pytest.fixture(scope="module")
def clip_alone(world_folder: Path, pictures: Images, captions: list[str]) -> dict[str, NDArray[np.float32]]:
    """open_clip's own transform and tokenizer, batch 1."""
    folder = world_folder / "clip"
    config = json.loads((folder / "open_clip_config.json").read_text())
    model = open_clip.CLIP(**config["model_cfg"]).eval()
    model.load_state_dict(load_file(str(folder / "open_clip_model.safetensors")))
    transform = open_clip.image_transform(32, is_train=False, **config["preprocess_cfg"])
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    rows: dict[str, list[NDArray[np.float32]]] = {"clip_score": [], "clip_image": [], "clip_text": []}
    with torch.no_grad():
        for image, caption in zip(pictures, captions, strict=True):
            tokens = tokenizer(caption, padding="max_length", max_length=24, return_tensors="pt").input_ids
            seen = model.encode_image(transform(Image.fromarray(image))[None], normalize=True)[0].numpy()
            read = model.encode_text(tokens, normalize=True)[0].numpy()
            rows["clip_image"].append(seen)
            rows["clip_text"].append(read)
            rows["clip_score"].append(np.asarray(seen @ read))
    return {name: np.stack(values) for name, values in rows.items()}


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_clip_scores_as_open_clip_does(
    world_folder: Path,
    pictures: Images,
    captions: list[str],
    clip_alone: dict[str, NDArray[np.float32]],
    size: int,
) -> None:
    scores = in_batches(OpenClipScorer.from_folder(world_folder / "clip"), pictures, captions, size)
    for name, expected in clip_alone.items():
        np.testing.assert_allclose(scores[name], expected, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_aesthetic_head_reads_the_clip_embedding(
    world_folder: Path,
    pictures: Images,
    captions: list[str],
    clip_alone: dict[str, NDArray[np.float32]],
    size: int,
) -> None:
    weights = load_file(str(world_folder / "aesthetic.safetensors"))
    w0, b0, w1, b1 = (weights[f"layers.{i}.{part}"] for i in (0, 1) for part in ("weight", "bias"))
    embeddings = torch.from_numpy(clip_alone["clip_image"])
    expected = nn.functional.gelu(embeddings @ w0.T + b0) @ w1.T + b1
    clip = OpenClipScorer.from_folder(world_folder / "clip")
    scorer = AestheticScorer(clip, load_head(world_folder / "aesthetic.safetensors"))
    scores = in_batches(scorer, pictures, captions, size)
    np.testing.assert_allclose(scores["aesthetic"], expected[:, 0].numpy(), atol=1e-4)
    np.testing.assert_allclose(scores["clip_score"], clip_alone["clip_score"], atol=1e-4)


def test_aesthetic_head_accepts_the_numbering_of_a_chain_with_dropout(tmp_path: Path) -> None:
    torch.manual_seed(1)
    public = nn.Sequential(nn.Linear(24, 16), nn.Dropout(), nn.Linear(16, 8), nn.Linear(8, 1)).eval()
    weights = {f"layers.{name}": value for name, value in public.state_dict().items()}
    save_file(weights, str(tmp_path / "public.safetensors"))
    embeddings = torch.randn(5, 24)
    ours = load_head(tmp_path / "public.safetensors")(embeddings)
    torch.testing.assert_close(ours, public(embeddings)[:, 0])


def test_aesthetic_head_keeps_its_activation(tmp_path: Path) -> None:
    head = AestheticHead([4, 4, 1], "relu")
    save_head(tmp_path / "head.safetensors", head)
    embeddings = torch.randn(6, 4)
    torch.testing.assert_close(load_head(tmp_path / "head.safetensors")(embeddings), head(embeddings))
    with pytest.raises(ValueError, match="activation: 'tanh'; accepted: none, relu, gelu"):
        AestheticHead([4, 1], "tanh")


@pytest.mark.parametrize("processor", [None, BitImageProcessor(size={"shortest_edge": 40}, crop_size=32)])
@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_dino_embeds_as_transformers_does(
    world_folder: Path,
    tmp_path: Path,
    pictures: Images,
    captions: list[str],
    processor: BitImageProcessor | None,
    size: int,
) -> None:
    model = Dinov2Model.from_pretrained(str(world_folder / "dino")).float().eval()
    model.save_pretrained(str(tmp_path))
    if processor is not None:
        processor.save_pretrained(str(tmp_path))
    plain = processor or BitImageProcessor(
        size={"shortest_edge": 32},
        crop_size=32,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    with torch.no_grad():
        tokens = [
            model(**plain(Image.fromarray(image), return_tensors="pt")).last_hidden_state[0, 0].numpy()
            for image in pictures
        ]
    expected = np.stack([token / np.linalg.norm(token) for token in tokens])
    scores = in_batches(DinoScorer.load(tmp_path), pictures, captions, size)
    np.testing.assert_allclose(scores["dino"], expected, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_preference_is_the_networks_two_sigmoids(
    world_folder: Path, pictures: Images, captions: list[str], size: int
) -> None:
    folder = world_folder / "preference"
    network = PreferenceNetwork(PreferenceConfig(**json.loads((folder / "config.json").read_text()))).eval()
    network.load_state_dict(load_file(str(folder / "model.safetensors")))
    tokenizer = CLIPTokenizer.from_pretrained(str(folder))
    expected = []
    with torch.no_grad():
        for image, caption in zip(pictures, captions, strict=True):
            small = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
            pixels = torch.from_numpy(small.copy()).permute(2, 0, 1)[None] / 127.5 - 1
            tokens = tokenizer(caption, return_tensors="pt").input_ids
            expected.append(network(pixels, tokens).sigmoid()[0].tolist())
    scores = in_batches(PreferenceScorer.from_folder(folder), pictures, captions, size)
    for column, name in enumerate(("image_reward", "image_reward_now")):
        np.testing.assert_allclose(scores[name], np.array(expected)[:, column], atol=1e-4)
        assert scores[name].min() > 0
        assert scores[name].max() < 1


def test_preference_folder_survives_half_precision_and_names_unknown_settings(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = PreferenceNetwork(PreferenceConfig(vocab_size=50, eos_token_id=49, width=16, layers=1, heads=2))
    save_preference(tmp_path, network.half())
    again = load_preference(tmp_path)
    assert again.config == network.config
    for name, value in network.float().state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    (tmp_path / "config.json").write_text('{"depth": 3}')
    with pytest.raises(ValueError, match="unknown 'depth'; accepted: vocab_size"):
        load_preference(tmp_path)


def test_preference_ignores_padding_and_reads_the_caption() -> None:
    torch.manual_seed(3)
    network = PreferenceNetwork(PreferenceConfig(width=32, layers=2)).eval()
    images = torch.randn(2, 3, 64, 64)
    tokens = torch.full((2, 24), 172)
    tokens[:, :4] = torch.tensor([171, 5, 6, 172])
    padded, other = tokens.clone(), tokens.clone()
    padded[:, 4:] = 9
    other[:, 2] = 7
    with torch.no_grad():
        torch.testing.assert_close(network(images, padded), network(images, tokens))
        torch.testing.assert_close(network(images, tokens[:, :4]), network(images, tokens))
        assert (network(images, other) - network(images, tokens)).abs().min() > 1e-5


def test_no_score_depends_on_its_company(world_folder: Path, pictures: Images, captions: list[str]) -> None:
    """Bit for bit, so that a run repeats however calls were merged. CPU; the GPU keeps rounding."""
    for scorer in load_scorers(world_folder):
        together = scorer.score(pictures, captions)
        for size in (1, 2, 3, 7, 13):
            alone = in_batches(scorer, pictures, captions, size)
            for name in scorer.outputs:
                np.testing.assert_array_equal(alone[name], together[name])


def test_world_gives_all_outputs_with_unit_embeddings(
    world_folder: Path, pictures: Images, captions: list[str]
) -> None:
    client = LocalClient(load_scorers(world_folder))
    scores = client.score(pictures, captions)
    preferences = {"image_reward", "image_reward_now"}
    assert set(scores) == {"clip_score", "clip_image", "clip_text", "aesthetic", "dino", *preferences}
    for name in ("clip_image", "clip_text", "dino"):
        np.testing.assert_allclose(np.linalg.norm(scores[name], axis=1), 1, atol=1e-5)
    assert {scores[name].shape for name in ("clip_score", "aesthetic", "image_reward")} == {(64,)}
    assert {rows.dtype for rows in scores.values()} == {np.dtype(np.float32)}


def test_world_says_what_its_folder_lacks(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    with pytest.raises(ValueError, match=r"no 'aesthetic.safetensors' in it; needed: clip, aesthetic"):
        load_scorers(tmp_path)


def test_text_cache_encodes_a_prompt_once_and_forgets_the_oldest() -> None:
    asked: list[str] = []

    def encode(prompts: list[str]) -> torch.Tensor:
        asked.extend(prompts)
        return torch.tensor([[float(len(prompt))] for prompt in prompts])

    cache = TextCache(encode, capacity=2)
    assert cache(["a", "bb", "a"]).flatten().tolist() == [1, 2, 1]
    assert cache(["bb", "a"]).flatten().tolist() == [2, 1]
    assert asked == ["a", "bb"]
    cache(["ccc"])
    assert cache(["a", "bb"]).flatten().tolist() == [1, 2]
    assert asked == ["a", "bb", "ccc", "bb"]
    assert (cache.hits, cache.misses) == (3, 4)
