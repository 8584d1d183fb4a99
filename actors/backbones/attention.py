"""Cross-attention maps of a UNet, streamed: what a mask needs and nothing more.

Always true here: maps are recorded at one resolution only, by the processors of the layers there, as a
running sum of the mean over heads; nothing is stored unless a recording is open, and the network's output
is the same with and without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

MAX_SIDE = 16
"""Maps are taken at the finest resolution of at most this many positions a side."""


class Processor(Protocol):
    """How diffusers calls an attention processor."""

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Attention's output, of hidden_states' shape."""
        ...


class AttentionRecorder:
    """Sums cross-attention over layers while open; one for each UNet."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.is_open = False
        self._sum_BQL: torch.Tensor | None = None
        self._layers = 0

    @contextmanager
    def recording(self, on: bool) -> Iterator[None]:
        """Record what is called inside, if `on`."""
        self.is_open, self._sum_BQL, self._layers = on, None, 0
        try:
            yield
        finally:
            self.is_open = False

    def add(self, probabilities_BNQL: torch.Tensor) -> None:
        """One layer's attention probabilities, with N heads."""
        mean_BQL = probabilities_BNQL.float().mean(dim=1)
        self._sum_BQL = mean_BQL if self._sum_BQL is None else self._sum_BQL + mean_BQL
        self._layers += 1

    def maps(self) -> torch.Tensor:
        """B x L x H x W: the mean over the recorded layers. The recorder forgets them."""
        assert self._sum_BQL is not None, "no layer was recorded"
        mean_BQL, self._sum_BQL = self._sum_BQL / self._layers, None
        batch, _, tokens = mean_BQL.shape
        return mean_BQL.transpose(1, 2).reshape(batch, tokens, *self.size)


class RecordingProcessor:
    """Cross-attention in plain mathematics while the recorder is open, else the processor it replaces."""

    def __init__(self, recorder: AttentionRecorder, otherwise: Processor) -> None:
        self.recorder = recorder
        self.otherwise = otherwise

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As diffusers' AttnProcessor; hidden_states is B x Q x C, as in every transformer block."""
        if not self.recorder.is_open:
            return self.otherwise(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        assert encoder_hidden_states is not None, "recording is for cross-attention"
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        probabilities = attn.get_attention_scores(query, key, attention_mask)
        self.recorder.add(probabilities.unflatten(0, (-1, attn.heads)))
        mixed = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        return attn.to_out[1](attn.to_out[0](mixed))


def install_attention(unet: UNet2DConditionModel, latent_size: tuple[int, int]) -> AttentionRecorder | None:
    """Set a UNet's processors: plain mathematics on the CPU (faster there), SDPA elsewhere.

    Returns the recorder of its cross-attention, or None if it has none.
    """
    plain: Processor = AttnProcessor() if unet.device.type == "cpu" else AttnProcessor2_0()
    factors = {
        name: _downsampling(name, unet) for name in unet.attn_processors if name.endswith("attn2.processor")
    }
    if not factors:
        unet.set_attn_processor(plain)
        return None
    finest_first = sorted(set(factors.values()))
    fitting = [factor for factor in finest_first if _coarser(max(latent_size), factor) <= MAX_SIDE]
    chosen = fitting[0] if fitting else finest_first[-1]
    recorder = AttentionRecorder((_coarser(latent_size[0], chosen), _coarser(latent_size[1], chosen)))
    recording = RecordingProcessor(recorder, plain)
    unet.set_attn_processor(
        {name: recording if factors.get(name) == chosen else plain for name in unet.attn_processors}
    )
    return recorder


def _downsampling(name: str, unet: UNet2DConditionModel) -> int:
    """How much coarser than the latents the layer of that name works."""
    last = len(unet.config.block_out_channels) - 1
    block, _, rest = name.partition(".")
    if block == "mid_block":
        return int(2**last)
    index = int(rest.partition(".")[0])
    return int(2 ** (index if block == "down_blocks" else last - index))


def _coarser(side: int, factor: int) -> int:
    """Positions that strided convolutions leave of a side: each halving rounds up."""
    return -(-side // factor)
