"""Layers whose rows do not depend on how many there are.

A matrix library takes another algorithm, with other rounding, for few rows than for many. An image would
then depend, in its last bits, on how many others share the denoiser call.

Always true here: weights stay a layer's own. On a CPU a row's result is the same to the last bit, whether
it is computed alone or with others. Which layers need help for that was found by comparing all layers of
the embedded world's networks in batches of 1 to 16 images; tests/actors/test_rowwise.py compares the whole.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

FEWEST_ROWS = 16
"""From so many rows on the library takes one algorithm; fewer are filled up."""


class RowwiseLinear(nn.Linear):
    """A Linear that computes at least FEWEST_ROWS rows."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[R, in] -> [R, out]; whatever has more dimensions, or is on a GPU, as any Linear does it."""
        missing = FEWEST_ROWS - len(input)
        if input.ndim != 2 or missing <= 0 or input.device.type != "cpu":
            return super().forward(input)
        filled = torch.cat([input, input.new_zeros(missing, input.shape[1])])
        return super().forward(filled)[: len(input)]


class RowwisePointwise(nn.Conv2d):
    """A convolution of single pixels, computed as the matrix product that it is."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[B, in, H, W] -> [B, out, H, W], channels last."""
        if input.device.type != "cpu":
            return super().forward(input)
        mixed_BHWC = functional.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return mixed_BHWC.permute(0, 3, 1, 2)


def make_rowwise(network: nn.Module) -> None:
    """Let every layer inside that needs it compute its rows alone, in place."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = RowwiseLinear
        elif type(module) is nn.Conv2d and _is_pointwise(module):
            module.__class__ = RowwisePointwise


def _is_pointwise(layer: nn.Conv2d) -> bool:
    plain = layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1
    return layer.kernel_size == (1, 1) and plain
