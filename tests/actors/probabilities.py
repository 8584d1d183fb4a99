"""Attention probabilities, computed from a layer's own weights as its definition says."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor


class ProbabilitiesOf(AttnProcessor):
    """diffusers' plain processor, keeping every cross-attention's probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if encoder_hidden_states is not None:
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            probabilities = (query @ key.transpose(1, 2) * attn.scale).softmax(-1)
            self.kept.append(probabilities.unflatten(0, (-1, attn.heads)))
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)


class JointProbabilitiesOf(FluxAttnProcessor):
    """diffusers' processor of Flux, keeping the probabilities of all tokens on all tokens, text first."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        if encoder_hidden_states is not None:
            queries = [attn.norm_added_q(_heads(attn, attn.add_q_proj(encoder_hidden_states)))]
            queries += [attn.norm_q(_heads(attn, attn.to_q(hidden_states)))]
            keys = [attn.norm_added_k(_heads(attn, attn.add_k_proj(encoder_hidden_states)))]
            keys += [attn.norm_k(_heads(attn, attn.to_k(hidden_states)))]
            query, key = (
                apply_rotary_emb(torch.cat(parts, dim=1), image_rotary_emb, sequence_dim=1)
                for parts in (queries, keys)
            )
            scores = torch.einsum("bqnd,bknd->bnqk", query, key) / query.shape[-1] ** 0.5
            self.kept.append(scores.softmax(-1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


def _heads(attn: FluxAttention, projected: torch.Tensor) -> torch.Tensor:
    return projected.unflatten(-1, (attn.heads, -1))
