"""Caches that reuse a Flux transformer's inner results from step to step: diffusers' own hooks, made safe.

Always true here: what is kept belongs to one trajectory of one episode. It is forgotten when the timestep
does not fall or the prompt is another one (restart, refinement, next episode), and a batch is refused.
Two episodes of one prompt that take turns would not be told apart, so training asks for a single slot.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from diffusers import FirstBlockCacheConfig, FluxTransformer2DModel, TaylorSeerCacheConfig

from actors.backbones.config import Cache
from actors.contracts import Conditioning
from actors.errors import UserError


class StepCache:
    """Switches a cache on, and says before each call which trajectory the call belongs to."""

    def __init__(self, transformer: FluxTransformer2DModel, kind: Cache) -> None:
        self._transformer = transformer
        self._kind = kind
        self._last: tuple[float, Conditioning] | None = None
        transformer.enable_cache(
            FirstBlockCacheConfig()
            if kind == "first_block"
            else TaylorSeerCacheConfig(taylor_factors_dtype=transformer.dtype)
        )

    def step(
        self, timesteps_B: torch.Tensor, conditioning: Conditioning, *, attention: bool
    ) -> AbstractContextManager[None]:
        """The context in which to call the transformer.

        Raises UserError for a batch, and where attention is asked for, which skipped blocks do not compute.
        """
        count = len(timesteps_B)
        if count > 1:
            raise UserError(
                f"backbone.cache is {self._kind!r} and a batch holds {count} episodes;"
                " accepted: one at a time (resources.slots=1, evaluation.slots=1), or backbone.cache=null"
            )
        if attention:
            raise UserError(
                f"backbone.cache is {self._kind!r} and refine needs attention maps;"
                " accepted: engine.actions without refine, or backbone.cache=null"
            )
        timestep = float(timesteps_B[0])
        if not self._goes_on(timestep, conditioning):
            self._transformer._reset_stateful_cache()
        self._last = (timestep, conditioning)
        return self._transformer.cache_context("trajectory")

    def _goes_on(self, timestep: float, conditioning: Conditioning) -> bool:
        if self._last is None:
            return False
        last_timestep, last = self._last
        return (
            timestep < last_timestep
            and torch.equal(last.pooled_BD, conditioning.pooled_BD)
            and torch.equal(last.text_BLD, conditioning.text_BLD)
        )
