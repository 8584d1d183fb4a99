"""The Inception network that published FID and Inception scores are made with, from a local file.

Always true here: only the TensorFlow network of 2015-12-05 with its 1008 outputs is taken, in the PyTorch
port of its weights (pt_inception-2015-12-05-6726825d.pth of mseitzer/pytorch-fid). torchvision's own
Inception has other weights and other pooling, its numbers compare with nobody's, and it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import inception as torchvision_inception

from evaluation.metrics.config import Resize
from rewards_service.contracts import Images, Scores
from rewards_service.scorers.batches import in_tiles
from rewards_service.scorers.pretrained import checkpoint_file, read_weights

SIDE, FEATURES, CLASSES = 299, 2048, 1008
_MODULES = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    *("maxpool2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d"),
    *("Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "avgpool"),
)


class _OwnPool(nn.Module):
    """An Inception block whose pooling branch pools otherwise; torchvision's is computed and dropped."""

    branch_pool: nn.Module
    pool = staticmethod(
        partial(functional.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    )

    def _forward(self, x: Tensor) -> list[Tensor]:
        *others, _ = super()._forward(x)  # type: ignore[misc]
        return [*others, self.branch_pool(self.pool(x))]


class _A(_OwnPool, torchvision_inception.InceptionA):
    """Averages leave padding out, as TensorFlow's do."""


class _C(_OwnPool, torchvision_inception.InceptionC):
    """As _A."""


class _E(_OwnPool, torchvision_inception.InceptionE):
    """As _A."""


class _LastE(_OwnPool, torchvision_inception.InceptionE):
    """The very last block of the published network takes maxima."""

    pool = staticmethod(partial(functional.max_pool2d, kernel_size=3, stride=1, padding=1))


def fid_inception() -> torchvision_inception.Inception3:
    """The network with fresh weights."""
    blocks: list[Any] = [
        torchvision_inception.BasicConv2d,
        _A,
        torchvision_inception.InceptionB,
        _C,
        torchvision_inception.InceptionD,
        _E,
        torchvision_inception.InceptionAux,
    ]
    network = torchvision_inception.Inception3(
        CLASSES, aux_logits=False, inception_blocks=blocks, init_weights=False
    )
    network.Mixed_7c = _LastE(2048)
    return network.eval()


class InceptionFeatures:
    """Gives `inception` [N, 2048], the last average pool, and `inception_logits` [N, 1008] without bias.

    resize: "clean" is clean-fid's (Parmar et al., 2022, arXiv 2104.11222: antialiased bicubic, in floats),
    "pytorch_fid" that of pytorch-fid (bilinear without antialiasing). Their numbers do not compare. Logits
    are without bias because the published Inception score is (its code drops it).
    """

    outputs = ("inception", "inception_logits")

    def __init__(
        self,
        network: torchvision_inception.Inception3,
        resize: Resize = "clean",
        device: str | torch.device = "cpu",
        batch_size: int = 64,
    ) -> None:
        self.network = network.to(device).eval()
        self.resize = resize
        self.device = torch.device(device)
        self.batch_size = batch_size

    @classmethod
    def load(cls, weights: str | Path, resize: Resize, device: str, batch_size: int) -> InceptionFeatures:
        """From a file, or from a hub as `checkpoint_file` says. ValueError for other weights."""
        stored = read_weights(checkpoint_file(weights))
        classes = stored["fc.weight"].shape[0] if "fc.weight" in stored else 0
        if classes != CLASSES:
            raise ValueError(
                f"has {classes} classes; accepted: the network of 2015-12-05 with {CLASSES}, for instance "
                "pt_inception-2015-12-05-6726825d.pth, as numbers of any other compare with nobody's"
            )
        network = fid_inception()
        try:
            network.load_state_dict(stored)
        except RuntimeError as error:
            raise ValueError(f"does not fill the network: {error}") from error
        return cls(network, resize, device, batch_size)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Scores:
        """Features of uint8 images [N, H, W, 3]; prompts are not looked at."""
        pixels_NCHW = self.pixels(images).to(self.device)
        both_NF = in_tiles(self._features, pixels_NCHW, batch_size=self.batch_size).cpu().numpy()
        return {"inception": both_NF[:, :FEATURES], "inception_logits": both_NF[:, FEATURES:]}

    def pixels(self, images: Images) -> Tensor:
        """Images as the network takes them: [N, 3, 299, 299], about -1 to 1."""
        if self.resize == "clean":
            resized = torch.from_numpy(np.stack([_clean(image) for image in images]))
            return ((resized - 128) / 128).permute(0, 3, 1, 2).contiguous()
        floats_NCHW = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
        return 2 * functional.interpolate(floats_NCHW, (SIDE, SIDE), mode="bilinear", align_corners=False) - 1

    def _features(self, pixels_BCHW: Tensor) -> Tensor:
        maps = pixels_BCHW
        for name in _MODULES:
            maps = getattr(self.network, name)(maps)
        features_BD = maps.flatten(1)
        return torch.cat([features_BD, features_BD @ self.network.fc.weight.T], dim=1)


def _clean(image: Images) -> Any:
    """[299, 299, 3] in float32, 0 to 255: each channel resized as a float image, then clipped."""
    channels = [
        Image.fromarray(image[..., channel].astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)
