"""The reward actors of a run: what they answer with, and what is said when they cannot load."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from actors.backbones.config import BackboneConfig
from actors.errors import UserError
from learner.config import ResourcesConfig, RunConfig
from learner.session import world
from rewards_service.scorers_config import ClipConfig, DinoConfig, ScorersConfig
from shapes import weights

pytestmark = pytest.mark.usefixtures("ray_session")


def config_with(scorers: ScorersConfig | str) -> RunConfig:
    return RunConfig(
        backbone=BackboneConfig(scorers=scorers), resources=ResourcesConfig(cpus_per_reward_replica=0.5)
    )


def test_reward_actors_load_the_models_that_are_named() -> None:
    named = ScorersConfig(dino=DinoConfig(str(weights.PATH / "dino")))
    with world(config_with(named)) as opened:
        client = opened.make_client()
        scores = client.score(np.zeros((2, 64, 64, 3), np.uint8), ["a", "b"])
        assert set(scores) == {"dino"}
        assert opened.scorers == named.identity


def test_damaged_weights_are_the_users_one_line(tmp_path: Path) -> None:
    shutil.copytree(weights.PATH / "clip", tmp_path / "clip")
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    named = ScorersConfig(clip=ClipConfig(str(tmp_path / "clip"), pretrained=None))
    with (
        pytest.raises(UserError, match=r"^backbone\.scorers\.clip\.model=.*SafetensorError"),
        world(config_with(named)),
    ):
        pass
