"""What a configuration loads, and what is said of weights that are missing, damaged, wrong or harmful."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from rewards_service.contracts import METRICS
from rewards_service.loading import build_scorers
from rewards_service.local import LocalClient
from rewards_service.scorers.clip import OpenClipScorer
from rewards_service.scorers_config import (
    AestheticConfig,
    ClipConfig,
    DinoConfig,
    HpsConfig,
    ImageRewardConfig,
    PickScoreConfig,
    ScorersConfig,
)
from rewards_service.world import load_scorers
from tests.rewards_service.reward_models import (
    HPS_ARCHITECTURE,
    laion_head,
    small_blip,
    write_hps,
    write_image_reward,
    write_laion_head,
    write_pick_score,
)

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, world_folder: Path) -> Iterator[Path]:
    """One of each published model, small; embeddings of clip have 24 numbers."""
    made = tmp_path_factory.mktemp("published")
    shutil.copytree(world_folder / "clip", made / "clip")
    shutil.copytree(world_folder / "dino", made / "dino")
    write_laion_head(made / "head.pth", 24)
    write_hps(made)
    write_pick_score(made)
    with small_blip(made):
        write_image_reward(made)
        yield made


@pytest.fixture
def config(folder: Path) -> ScorersConfig:
    return ScorersConfig(
        clip=ClipConfig(str(folder / "clip"), pretrained=None, batch_size=8),
        aesthetic=AestheticConfig(str(folder / "head.pth")),
        image_reward=ImageRewardConfig(str(folder / "reward.pt"), str(folder / "med_config.json")),
        dino=DinoConfig(str(folder / "dino")),
    )


def test_the_standard_set_gives_every_metric_and_embedding_a_reward_can_ask_for(
    config: ScorersConfig, pictures: Images, captions: list[str]
) -> None:
    client = LocalClient(build_scorers(config))
    assert set(client.outputs) == {*METRICS.values(), "clip_image", "clip_text", "dino"}
    config.check_outputs(client.outputs, "scorers")
    for name in ("hps", "pick_score"):
        with pytest.raises(ValueError, match=f"scorers.{name}=null: give a section"):
            config.check_outputs([name], "scorers")
    scores = client.score(pictures, captions)
    head = laion_head(24)
    with torch.no_grad():
        expected = head(torch.from_numpy(scores["clip_image"]))[:, 0].numpy()
    np.testing.assert_allclose(scores["aesthetic"], expected, atol=1e-5)
    np.testing.assert_allclose(
        scores["clip_score"], (scores["clip_image"] * scores["clip_text"]).sum(1), atol=1e-5
    )


def test_preference_models_are_loaded_when_they_are_named(
    folder: Path, pictures: Images, captions: list[str]
) -> None:
    named = ScorersConfig(
        hps=HpsConfig(str(folder / "hps.pt"), HPS_ARCHITECTURE),
        pick_score=PickScoreConfig(str(folder / "pick"), str(folder / "processor")),
    )
    scores = LocalClient(build_scorers(named)).score(pictures[:3], captions[:3], ["pick_score", "hps"])
    assert {name: rows.shape for name, rows in scores.items()} == {"hps": (3,), "pick_score": (3,)}


def test_a_folder_of_the_embedded_world_scores_as_before(
    world_folder: Path, pictures: Images, captions: list[str]
) -> None:
    expected = LocalClient(load_scorers(world_folder)).score(pictures[:5], captions[:5])
    scores = LocalClient(build_scorers(world_folder)).score(pictures[:5], captions[:5])
    for name, rows in expected.items():
        np.testing.assert_array_equal(scores[name], rows)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_keeps_embeddings_close(
    config: ScorersConfig, pictures: Images, captions: list[str], dtype: Any
) -> None:
    assert config.clip is not None
    assert config.dino is not None
    full = ScorersConfig(clip=config.clip, dino=config.dino)
    low = ScorersConfig(clip=replace(config.clip, dtype=dtype), dino=replace(config.dino, dtype=dtype))
    exact, rounded = (
        LocalClient(build_scorers(named)).score(pictures[:8], captions[:8]) for named in (full, low)
    )
    for name in ("clip_image", "clip_text", "dino"):
        assert rounded[name].dtype == np.float32
        assert (exact[name] * rounded[name]).sum(axis=1).min() > 0.999
        assert np.abs(exact[name] - rounded[name]).max() > 0  # it did run in another type


def test_a_name_takes_a_checkpoint_file_of_either_kind(
    folder: Path, tmp_path: Path, pictures: Images, captions: list[str]
) -> None:
    weights = torch.load(folder / "hps.pt", weights_only=True)["state_dict"]
    save_file(weights, str(tmp_path / "clip.safetensors"))
    by_torch = OpenClipScorer.load(HPS_ARCHITECTURE, folder / "hps.pt").score(pictures[:3], captions[:3])
    by_safetensors = OpenClipScorer.load(HPS_ARCHITECTURE, tmp_path / "clip.safetensors")
    for name, rows in by_safetensors.score(pictures[:3], captions[:3]).items():
        np.testing.assert_array_equal(rows, by_torch[name])


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("shape", [(48, 67), (67, 48), (32, 35)])
def test_every_resize_mode_of_open_clip_is_followed(folder: Path, mode: str, shape: tuple[int, int]) -> None:
    """SigLIP and CLIPA squash, HPS fits the long side, the others cut the centre out."""
    scorer = OpenClipScorer.load(HPS_ARCHITECTURE, folder / "hps.pt", resize_mode=mode)
    image = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = open_clip.image_transform(32, is_train=False, resize_mode=mode)(Image.fromarray(image))
    torch.testing.assert_close(scorer.pixels(image[None], torch.device("cpu"))[0], expected)


class Harmful:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


SECTIONS = [
    ("clip", "clip.model"),
    ("aesthetic", "aesthetic.head"),
    ("image_reward", "image_reward.checkpoint"),
    ("dino", "dino.model"),
    ("hps", "hps.checkpoint"),
    ("pick_score", "pick_score.model"),
]


def with_weights(
    config: ScorersConfig, folder: Path, tmp_path: Path, section: str
) -> tuple[ScorersConfig, Path]:
    """A configuration of one model whose weights, a torch file in `tmp_path`, are yet to be written."""
    file = tmp_path / "weights.pt"
    if section in ("dino", "pick_score", "clip"):
        source = folder / {"pick_score": "pick"}.get(section, section)
        shutil.copytree(source, tmp_path / section, ignore=shutil.ignore_patterns("*.safetensors"))
        name = "open_clip_pytorch_model.bin" if section == "clip" else "pytorch_model.bin"
        file = tmp_path / section / name
    here = str(tmp_path / section)
    return {
        "clip": ScorersConfig(clip=ClipConfig(here, None)),
        "aesthetic": ScorersConfig(clip=config.clip, aesthetic=AestheticConfig(str(file))),
        "image_reward": ScorersConfig(
            image_reward=ImageRewardConfig(str(file), str(folder / "med_config.json"))
        ),
        "dino": ScorersConfig(dino=DinoConfig(here)),
        "hps": ScorersConfig(hps=HpsConfig(str(file), HPS_ARCHITECTURE)),
        "pick_score": ScorersConfig(pick_score=PickScoreConfig(here, str(folder / "processor"))),
    }[section], file


def said(named: ScorersConfig) -> str:
    """What is said of a configuration that cannot be loaded."""
    with pytest.raises(ValueError, match=r".") as caught:
        build_scorers(named, option="backbone.scorers")
    return str(caught.value)


@pytest.mark.parametrize(("section", "option"), SECTIONS)
@pytest.mark.parametrize("fault", ["missing", "damaged", "harmful", "another model's"])
def test_weights_that_will_not_do_are_one_line_that_names_the_option(
    config: ScorersConfig,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    section: str,
    option: str,
    fault: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    named, file = with_weights(config, folder, tmp_path, section)
    if fault == "damaged":
        torch.save({"layers.0.weight": torch.zeros(100, 100)}, file)
        file.write_bytes(file.read_bytes()[:5000])
    elif fault == "harmful":
        torch.save({"layers.0.weight": Harmful()}, file)
    elif fault == "another model's":
        torch.save({"backbone.stem.weight": torch.zeros(3, 3)}, file)
    message = said(named)
    assert message.startswith(f"backbone.scorers.{option}=")
    assert "\n" not in message
    assert len(message) < 600
    assert not Path("unpickled").exists()


def test_half_a_safetensors_file_is_damaged_too(config: ScorersConfig, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "clip", tmp_path / "clip")
    weights = tmp_path / "clip" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert said(ScorersConfig(clip=ClipConfig(str(tmp_path / "clip"), None))).startswith(
        f"backbone.scorers.clip.model={tmp_path / 'clip'}: SafetensorError"
    )


def test_a_model_of_another_kind_is_refused_instead_of_left_random(folder: Path) -> None:
    """transformers itself would warn, and start the network at random."""
    assert "is a 'clip' model; accepted: 'dinov2'" in said(
        ScorersConfig(dino=DinoConfig(str(folder / "pick")))
    )


def test_a_transformers_folder_without_all_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "dino", tmp_path / "dino")
    file = str(tmp_path / "dino" / "model.safetensors")
    weights = load_file(file)
    del weights["layernorm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    message = said(ScorersConfig(dino=DinoConfig(str(tmp_path / "dino"))))
    assert "no 'layernorm.weight' among its weights; accepted: those of a Dinov2Model" in message


def test_a_head_for_other_embeddings_is_refused(config: ScorersConfig, tmp_path: Path) -> None:
    write_laion_head(tmp_path / "head.pth", 30)
    named = replace(config, aesthetic=AestheticConfig(str(tmp_path / "head.pth")))
    assert "takes embeddings of 30 numbers; accepted: a head for the 24 of clip" in said(named)


def test_names_that_nobody_knows_are_one_line(folder: Path) -> None:
    for clip, expected in (
        (ClipConfig("ViT-Q-14", "openai"), "clip.model=ViT-Q-14 (openai): RuntimeError: Model config"),
        (ClipConfig(HPS_ARCHITECTURE, "openai"), "Pretrained weights (openai) not found"),
        (ClipConfig(HPS_ARCHITECTURE, None), "pretrained=null; accepted: a tag or a checkpoint file"),
        (ClipConfig(str(folder / "clip")), "has weights of its own, pretrained='openai'; accepted: null"),
    ):
        assert expected in said(ScorersConfig(clip=clip))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScorersConfig(), "clip=null: give at least one of clip, aesthetic, image_reward"),
        (lambda: ScorersConfig(aesthetic=AestheticConfig()), "clip=null: give a section, as aesthetic"),
        (lambda: ClipConfig(dtype="half"), "dtype='half': give one of float32, bfloat16, float16"),  # type: ignore[arg-type]
        (lambda: DinoConfig(batch_size=12), "batch_size=12: give a multiple of 8"),
        (lambda: PickScoreConfig(cached_prompts=0), "cached_prompts=0: give an integer >= 1"),
    ],
)
def test_impossible_options_are_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        make()
    assert message in str(caught.value)


def test_identity_is_of_what_scores_depend_on(config: ScorersConfig) -> None:
    assert config.clip is not None
    larger = replace(config, clip=replace(config.clip, batch_size=64, cached_prompts=8))
    coarser = replace(config, clip=replace(config.clip, dtype="float16"))
    assert larger.identity == config.identity
    assert len({config.identity, coarser.identity, replace(config, dino=None).identity}) == 3
