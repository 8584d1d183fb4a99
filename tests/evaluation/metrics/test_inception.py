"""Inception features: the network against torchvision's with TensorFlow's pooling, weights, and resizing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision.models import inception as torchvision_inception

from evaluation.metrics.inception import InceptionFeatures, fid_inception


@pytest.fixture(scope="module")
def network() -> torchvision_inception.Inception3:
    torch.manual_seed(0)
    made = fid_inception()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if value.ndim == 4:  # keeps activations alive through 94 layers
                value.normal_(std=(2 / value[0].numel()) ** 0.5)
            elif name.endswith("bn.bias"):
                value.normal_(std=0.1)
    return made


@pytest.fixture(scope="module")
def pictures() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    coarse = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    return coarse.repeat(9, axis=1).repeat(9, axis=2)


def torchvisions(stored: dict[str, torch.Tensor]) -> torchvision_inception.Inception3:
    plain = torchvision_inception.inception_v3(
        weights=None, num_classes=1008, aux_logits=False, init_weights=False, transform_input=False
    )
    plain.load_state_dict(stored)
    return plain.eval()


def test_features_are_torchvisions_once_its_pools_are_tensorflows(
    network: torchvision_inception.Inception3, pictures: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    """Averages without padding in nine blocks, a maximum in the last; the classifier on top."""
    plain = torchvisions(network.state_dict())
    features = InceptionFeatures(network)
    pixels = features.pixels(pictures)
    averaged = partial(functional.avg_pool2d, count_include_pad=False)
    calls = 0

    def pool(x: torch.Tensor, kernel_size: int, stride: int, padding: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            return functional.max_pool2d(x, kernel_size, stride, padding)
        return averaged(x, kernel_size, stride, padding)

    with mock.patch.object(torchvision_inception, "F") as patched, torch.inference_mode():
        patched.avg_pool2d, patched.max_pool2d, patched.relu = pool, functional.max_pool2d, functional.relu
        logits = plain(pixels)
    assert calls == 9
    found = features(pictures, ["", ""])
    assert found["inception"].shape == (2, 2048)
    biased = found["inception_logits"] + network.fc.bias.detach().numpy()
    np.testing.assert_allclose(biased, logits.numpy(), rtol=1e-3, atol=1e-4 * np.abs(logits.numpy()).max())
    assert np.abs(found["inception"][0] - found["inception"][1]).max() > 1e-3
    with torch.inference_mode():
        assert not np.allclose(plain(pixels).numpy(), logits.numpy(), rtol=1e-2)


def test_the_published_file_is_read_and_torchvisions_own_is_refused(
    network: torchvision_inception.Inception3,
    pictures: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    tmp_path: Path,
) -> None:
    torch.save(network.state_dict(), tmp_path / "pt_inception.pth")
    loaded = InceptionFeatures.load(tmp_path / "pt_inception.pth", "clean", "cpu", 8)
    expected = InceptionFeatures(network)(pictures, ["", ""])["inception"]
    np.testing.assert_array_equal(loaded(pictures, ["", ""])["inception"], expected)

    foreign = {**network.state_dict(), "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save(foreign, tmp_path / "torchvision.pth")
    with pytest.raises(ValueError, match="has 1000 classes; accepted: the network of 2015-12-05"):
        InceptionFeatures.load(tmp_path / "torchvision.pth", "clean", "cpu", 8)
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "torn.pth")
    with pytest.raises(ValueError, match="does not fill the network"):
        InceptionFeatures.load(tmp_path / "torn.pth", "clean", "cpu", 8)


def test_clean_resizing_smooths_what_it_shrinks_and_the_other_does_not(
    network: torchvision_inception.Inception3,
) -> None:
    """Fine stripes become grey where neighbours are averaged, and stay stripes where pixels are picked."""
    stripes = np.zeros((1, 1196, 1196, 3), np.uint8)
    stripes[:, :, ::2] = 255
    clean = InceptionFeatures(network, "clean").pixels(stripes)
    assert clean.shape == (1, 3, 299, 299)
    assert clean.abs().max() < 0.1
    picked = InceptionFeatures(network, "pytorch_fid").pixels(stripes)
    shifted = InceptionFeatures(network, "pytorch_fid").pixels(np.roll(stripes, 1, 2))
    assert picked.shape == clean.shape
    torch.testing.assert_close(picked, -shifted)


def test_an_image_of_the_networks_size_is_only_scaled(network: torchvision_inception.Inception3) -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, 299, 299, 3), dtype=np.uint8)
    expected = torch.from_numpy(image.astype(np.float32)).permute(0, 3, 1, 2)
    torch.testing.assert_close(InceptionFeatures(network, "clean").pixels(image), (expected - 128) / 128)
    torch.testing.assert_close(
        InceptionFeatures(network, "pytorch_fid").pixels(image), expected / 127.5 - 1, atol=1e-5, rtol=0
    )


def test_clean_resizing_keeps_what_lies_between_two_integers(
    network: torchvision_inception.Inception3,
) -> None:
    """As clean-fid: channels are resized as floats; PIL on uint8 would round every pixel."""
    image = np.random.default_rng(2).integers(96, 160, (1, 64, 64, 3), dtype=np.uint8)  # nothing is clipped
    ours = InceptionFeatures(network, "clean").pixels(image) * 128 + 128
    rounded = Image.fromarray(image[0]).resize((299, 299), Image.Resampling.BICUBIC)
    difference = (ours[0].permute(1, 2, 0) - torch.from_numpy(np.array(rounded)).float()).abs()
    assert 0.2 < difference.mean() < 0.5  # one rounding is worth a quarter, and PIL rounds twice
    assert difference.max() < 2.5
