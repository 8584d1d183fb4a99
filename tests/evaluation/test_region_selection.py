"""The scripted comparison of regions: what each variant does and costs, and that only the region differs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from actors.contracts import EpisodeRequest, Images
from actors.engine import EngineConfig
from evaluation.region_selection import BASE, SAME_NFE, main, measure, variants
from tests.actors.fakes import OracleBackbone

CONFIG = EngineConfig(num_steps=7, warmup_steps=3)
REQUESTS = [EpisodeRequest(prompt, seed) for prompt in ("owl", "fox") for seed in range(2)]


def brightness(images: Images, prompts: Sequence[str]) -> NDArray[np.float32]:
    assert len(images) == len(prompts)
    return images.reshape(len(images), -1).mean(axis=1, dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "nfe", "coverage"),
    [
        (BASE, 7, 0.0),
        (SAME_NFE, 9, 0.0),
        ("whole image", 9, 1.0),
        ("attention", 9, 0.5),
        ("random", 9, 0.25),
        ("grid", 9, 0.25),
    ],
)
def test_a_variant_costs_and_covers_what_it_says(name: str, nfe: int, coverage: float) -> None:
    attention = torch.cat([torch.zeros(8, 4), torch.ones(8, 4)], dim=1)
    backbone = OracleBackbone(attention_HW=attention)
    measured = measure(backbone, variants(CONFIG, None)[name], REQUESTS, brightness)
    assert measured.nfe_N.tolist() == [nfe] * 4
    assert measured.coverage == pytest.approx(coverage, abs=0.03)
    truth = backbone.decode(torch.stack([backbone.truth(request.prompt) for request in REQUESTS]))
    np.testing.assert_allclose(measured.quality_N, brightness(truth, ["", "", "", ""]), atol=0.05)


def test_variants_differ_in_what_is_compared_alone() -> None:
    named = variants(CONFIG, "head.safetensors")
    regions = {name: config.refine_region for name, config in named.items() if "refine" in config.actions}
    assert sorted(regions.values()) == ["attention", "change", "grid", "grid", "learned", "random"]
    assert {(config.refine_steps, config.warmup_steps, config.num_steps) for config in named.values()} == {
        (2, 3, 7),
        (2, 3, 9),
    }
    assert "learned" not in variants(CONFIG, None)


def test_refining_past_the_end_is_a_one_line_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "5", "--at", "4"]) == 2
    assert capsys.readouterr().err.strip() == "error: --at is 4; accepted: below 4, where steps are left"
