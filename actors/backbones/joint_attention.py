"""Attention maps of a diffusion transformer with joint attention (Flux), streamed.

Always true here: a map is the probability with which an image token attends to a prompt token, out of all
tokens it attends to, as a mean over heads and double-stream blocks. It is computed beside the attention that
the network uses, one head at a time, and only while a recording is open: the network's output is the same
bits with and without one, and the memory needed does not grow with the number of blocks or heads.
"""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention

from actors.backbones.attention import AttentionRecorder, Processor

Rotary = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine of each position's angles, S x D, text positions first."""


class JointRecordingProcessor:
    """The processor it is given; while the recorder is open, it shows it what that one attends to."""

    def __init__(self, recorder: AttentionRecorder, otherwise: Processor) -> None:
        self.recorder = recorder
        self.otherwise = otherwise

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As diffusers' FluxAttnProcessor; hidden_states is B x Q x C, encoder_hidden_states B x L x C."""
        if self.recorder.is_open:
            assert encoder_hidden_states is not None, "recording is for double-stream blocks"
            assert image_rotary_emb is not None
            mean_BQL = image_to_text(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
            self.recorder.add(mean_BQL.unsqueeze(1))
        return self.otherwise(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


def image_to_text(
    attn: FluxAttention, image_BQC: torch.Tensor, text_BLC: torch.Tensor, rotary: Rotary
) -> torch.Tensor:
    """B x Q x L: the mean over heads of each image token's probabilities on the text tokens, float32."""
    tokens = text_BLC.shape[1]
    text_key_BLND = attn.norm_added_k(attn.add_k_proj(text_BLC).unflatten(-1, (attn.heads, -1)))
    image_key_BQND = attn.norm_k(attn.to_k(image_BQC).unflatten(-1, (attn.heads, -1)))
    query_BQND = attn.norm_q(attn.to_q(image_BQC).unflatten(-1, (attn.heads, -1)))
    key_BSND = apply_rotary_emb(torch.cat([text_key_BLND, image_key_BQND], dim=1), rotary, sequence_dim=1)
    image_rotary = (rotary[0][tokens:], rotary[1][tokens:])
    query_BQND = apply_rotary_emb(query_BQND, image_rotary, sequence_dim=1)
    scale = query_BQND.shape[-1] ** -0.5
    total_BQL = torch.zeros((*image_BQC.shape[:2], tokens), dtype=torch.float32, device=image_BQC.device)
    for head in range(attn.heads):  # all heads at once would be gigabytes at 1024 pixels
        scores_BQS = query_BQND[:, :, head] @ key_BSND[:, :, head].transpose(1, 2)
        total_BQL += (scores_BQS.float() * scale).softmax(dim=-1)[..., :tokens]
    return total_BQL / attn.heads


def install_joint_attention(
    transformer: FluxTransformer2DModel, token_grid: tuple[int, int]
) -> AttentionRecorder:
    """Put recording processors into the double-stream blocks; maps have one position an image token."""
    recorder = AttentionRecorder(token_grid)
    transformer.set_attn_processor(
        {
            name: JointRecordingProcessor(recorder, processor)
            if name.startswith("transformer_blocks.")
            else processor
            for name, processor in transformer.attn_processors.items()
        }
    )
    return recorder
