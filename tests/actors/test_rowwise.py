"""An image is the same to the last bit, alone or with others: the embedded world's own networks say so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from actors.backbones.config import BackboneConfig
from actors.backbones.loading import load_backbone
from actors.backbones.rowwise import make_rowwise
from actors.conditioning import conditioning_row, stack_conditioning
from actors.policy import PolicyNetwork

MOST = 16
PROMPTS = ["a red circle", "two blue squares", "a green star left of a red square", "a large yellow triangle"]


@pytest.mark.parametrize("attention", [False, True])
def test_a_denoiser_call_gives_each_image_what_it_gives_it_alone(attention: bool) -> None:
    backbone = load_backbone(BackboneConfig())
    generator = torch.Generator().manual_seed(0)
    latents_BCHW = torch.randn(MOST, *backbone.latent_shape, generator=generator)
    times_B = torch.linspace(950, 20, MOST).long()
    encoded = backbone.encode_prompts(PROMPTS)
    rows = [conditioning_row(encoded, index % len(PROMPTS)) for index in range(MOST)]
    scales_B = torch.full((MOST,), 3.0)
    alone = [
        backbone.denoise(
            latents_BCHW[i : i + 1], times_B[i : i + 1], rows[i], scales_B[:1], attention=attention
        )
        for i in range(MOST)
    ]
    for count in range(2, MOST + 1):
        together = backbone.denoise(
            latents_BCHW[:count],
            times_B[:count],
            stack_conditioning(rows[:count]),
            scales_B[:count],
            attention=attention,
        )
        for row in range(count):
            assert torch.equal(together.prediction_BCHW[row], alone[row].prediction_BCHW[0]), (count, row)
            assert torch.equal(together.features_BF[row], alone[row].features_BF[0]), (count, row)
            if attention:
                maps, lone = together.attention_BLHW, alone[row].attention_BLHW
                assert maps is not None
                assert lone is not None
                assert torch.equal(maps[row], lone[0]), (count, row)
        assert (backbone.decode(latents_BCHW[:count])[0] == backbone.decode(latents_BCHW[:1])[0]).all()


def test_a_policy_says_of_each_image_what_it_says_of_it_alone() -> None:
    torch.manual_seed(0)
    network = PolicyNetwork(300, 6).eval()
    before = {name: values.clone() for name, values in network.state_dict().items()}
    make_rowwise(network)
    observations_BD, mask_BA = torch.randn(40, 300), torch.ones(40, 6, dtype=torch.bool)
    alone = [network(observations_BD[i : i + 1], mask_BA[:1])[0] for i in range(40)]
    for count in (2, 3, 15, 16, 17, 40):
        together = network(observations_BD[:count], mask_BA[:count])
        assert all(torch.equal(together[i], alone[i]) for i in range(count)), count
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())


def test_a_pointwise_convolution_is_still_one() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(2, 3, 1, stride=2))
    images_BCHW = torch.randn(3, 8, 6, 5)
    expected = layers.double()(images_BCHW.double())
    make_rowwise(layers)
    torch.testing.assert_close(layers(images_BCHW.double()), expected, atol=1e-12, rtol=0)
    assert [type(layer).__name__ for layer in layers] == ["RowwisePointwise", "Conv2d", "Conv2d"]
