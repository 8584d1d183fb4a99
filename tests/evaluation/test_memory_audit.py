"""The memory audit against what is known independently: published sizes, headers, and a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from actors.backbones.config import BackboneConfig
from actors.engine import EngineConfig
from actors.errors import UserError
from evaluation.architectures import made_on
from evaluation.memory_audit import (
    GIB,
    call_peaks,
    env_runner_memory,
    plain_attention,
    reward_replica_memory,
)
from evaluation.peak_memory import peak_bytes
from evaluation.scorer_sizes import AESTHETIC, PUBLISHED, scorer_weights, stored_parameters
from evaluation.weightless import weightless_backbone
from learner.resources import ResourcesConfig
from rewards_service.scorers_config import ClipConfig, DinoConfig, ScorersConfig
from shapes import weights
from tests.rewards_service.reward_models import laion_head
from tune_configs.loading import compose

MIB = 2**20
#: Parameters as the models' own repositories and papers state them.
SIZES = {
    "sd15": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "sdxl": {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    "flux_dev": {"transformer": 11_901_408_320, "text_encoder_2": 4_762_310_656, "vae": 83_819_683},
}


@pytest.mark.parametrize("backbone", SIZES)
def test_networks_without_weights_are_as_large_as_the_published_ones(backbone: str) -> None:
    pipeline, _ = weightless_backbone(compose([f"backbone={backbone}"]).run.backbone)
    for network, parameters in SIZES[backbone].items():
        assert sum(each.numel() for each in getattr(pipeline, network).parameters()) == parameters


def test_the_embedded_worlds_networks_are_as_large_as_their_files_say() -> None:
    memory = env_runner_memory(BackboneConfig(), EngineConfig(), ResourcesConfig())
    for network, size in memory.weights.items():
        (file,) = (weights.PATH / "pipeline" / network).glob("*.safetensors")
        assert size == pytest.approx(4 * stored_parameters(file), rel=0.001), "buffers come on top"


def test_an_mlps_peak_is_what_one_adds_up() -> None:
    with made_on("meta", torch.float32):
        network = nn.Sequential(nn.Linear(10, 1000), nn.ReLU(), nn.Linear(1000, 20))
    zeros = torch.zeros(8, 10, device="meta")
    wide = 8 * 1000 * 4  # before and after the nonlinearity
    assert peak_bytes(lambda: network(zeros), [network]) == 2 * wide


def test_fused_attention_takes_no_matrix_of_all_pairs() -> None:
    query = torch.zeros(1, 1, 4096, 8, device="meta")
    attend = nn.functional.scaled_dot_product_attention
    assert peak_bytes(lambda: attend(query, query, query), []) == 4096 * 8 * 4


def test_activations_are_those_of_a_real_process() -> None:
    few, many = 16, 144
    done = subprocess.run(
        [sys.executable, "-m", "tests.evaluation.held_memory", str(few), str(many)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed is given back, as on a GPU
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    before, with_few, with_many = map(float, done.stdout.split())
    engine = EngineConfig(solver="dpmpp", num_steps=7)
    pipeline, backbone = weightless_backbone(BackboneConfig())
    plain_attention(pipeline)
    networks = [getattr(pipeline, name) for name in backbone.networks]
    peaks = [max(call_peaks(backbone, networks, engine, count)) for count in (few, many)]
    memory = env_runner_memory(BackboneConfig(), engine, ResourcesConfig(slots=few, groups=1))
    grown = peaks[1] - peaks[0] + (many - few) * memory.slot
    assert with_many - with_few == pytest.approx(grown / MIB, rel=0.3)
    assert before + memory.tensors / MIB == pytest.approx(with_few, rel=0.3)
    assert memory.total / MIB == pytest.approx(with_few, rel=0.3)


def test_more_slots_guidance_and_refinement_take_more_and_the_limit_holds() -> None:
    run = compose(["backbone=sd15"]).run
    resources = ResourcesConfig(slots=32, groups=2)
    memory = env_runner_memory(run.backbone, run.engine, resources)
    assert memory.weights["unet"] == pytest.approx(2 * SIZES["sd15"]["unet"], rel=0.001)
    alone = env_runner_memory(run.backbone, replace(run.engine, guidance_rule="none"), resources)
    assert alone.call_slope < memory.call_slope <= 2 * alone.call_slope, "two rows an episode, or one"
    most = memory.most_slots(16 * GIB, 2)
    assert most % 2 == 0
    fits = replace(memory, slots=most, in_call=most // 2)
    assert fits.total <= 16 * GIB < replace(memory, slots=most + 2, in_call=most // 2 + 1).total
    assert memory.most_slots(GIB, 2) == 0
    assert sum(memory.parts().values()) == pytest.approx(memory.total / GIB)


def test_published_reward_models_are_counted_on_their_architectures() -> None:
    with made_on("meta", torch.float32):
        dino = Dinov2Model(Dinov2Config(image_size=518))
        vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
        vision |= {"num_attention_heads": 16, "patch_size": 14}
        text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
        text |= {"num_attention_heads": 16}
        pick = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=1024))
    for name, model in (("facebook/dinov2-base", dino), ("yuvalkirstain/PickScore_v1", pick)):
        assert PUBLISHED[name].parameters == sum(each.numel() for each in model.parameters())
    assert sum(each.numel() for each in laion_head(768).parameters()) == AESTHETIC


def test_reward_models_take_what_their_types_and_files_say() -> None:
    scorers = compose(["backbone=sd15"]).run.backbone.scorers
    assert isinstance(scorers, ScorersConfig)
    found = scorer_weights(scorers)
    assert found["clip"] == 2 * 427_616_513
    assert sum(found.values()) == pytest.approx(1.9e9, rel=0.03)  # what docs/configuration.md says of them
    local = ScorersConfig(
        clip=ClipConfig(str(weights.PATH / "clip"), pretrained=None),
        dino=DinoConfig(str(weights.PATH / "dino")),
    )
    own = scorer_weights(local)
    for name, file in (("clip", "clip/open_clip_model"), ("dino", "dino/model")):
        stored = 4 * stored_parameters(weights.PATH / f"{file}.safetensors")
        assert own[name] == pytest.approx(stored, rel=0.01)
    assert reward_replica_memory(scorers, on_gpu=True, batch=64).total < 4 * GIB


def test_a_model_of_unknown_size_is_said() -> None:
    with pytest.raises(UserError, match=r"^backbone\.name='somebody/something': its size is not known"):
        weightless_backbone(BackboneConfig(name="somebody/something"))
    with pytest.raises(UserError, match=r"^backbone\.scorers\.dino\.model=somebody/dino: its size is not"):
        scorer_weights(ScorersConfig(dino=DinoConfig("somebody/dino")))
