"""What recording attention costs: nothing is kept of any layer but a running sum."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from actors.backbones.attention import AttentionRecorder
from tests.actors.loaded import load


def test_no_layers_probabilities_outlive_the_next_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So memory does not grow with the number of layers; and without a recording no layer is shown at all."""
    shown: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    add = AttentionRecorder.add

    def watched(self: AttentionRecorder, probabilities_BNQL: torch.Tensor) -> None:
        alive.append(sum(seen() is not None for seen in shown))
        shown.append(weakref.ref(probabilities_BNQL))
        add(self, probabilities_BNQL)

    monkeypatch.setattr(AttentionRecorder, "add", watched)
    backbone = load(folder, height=16, width=16)
    conditioning, latents = backbone.encode_prompts(["owl"]), torch.randn(1, *backbone.latent_shape)
    inputs = (latents, torch.tensor([500.0]), conditioning, torch.ones(1))
    assert backbone.denoise(*inputs).attention_BLHW is None
    assert not shown
    assert backbone.denoise(*inputs, attention=True).attention_BLHW is not None
    assert len(shown) >= 2
    assert alive == [0] * len(shown)
