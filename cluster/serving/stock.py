"""diffusers' own pipeline as a painter: what the benchmark compares with.

Always true here: the very networks, guidance and decoder of the served policy, DPM-Solver++ with a fixed
number of steps, one image at a time, first come first served.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import torch

from cluster.serving.events import Finished, ModelCard, PaintEvent, PaintRequest, Started
from cluster.serving.models import ModelSource, open_model
from cluster.serving.painter import PainterSettings, png

STEPS = 20


class StockPainter:
    """A painter without a policy."""

    def __init__(self, source: ModelSource, settings: PainterSettings) -> None:
        from actors.backbones.schedulers import matching_scheduler

        torch.set_num_threads(settings.torch_threads)
        self.model = open_model(source, source.version())
        engine = self.model.painting.engine.config
        warmup = min(engine.warmup_steps, STEPS - 1)
        stock = replace(engine, solver="dpmpp", num_steps=STEPS, timesteps=None, warmup_steps=warmup)
        self._pipeline = self.model.bench.pipeline
        self._pipeline.scheduler = matching_scheduler(self._pipeline.scheduler, stock)
        self._pipeline.set_progress_bar_config(disable=True)
        self._guidance_scale = engine.guidance_scale
        self._turn = asyncio.Lock()

    async def describe(self) -> ModelCard:
        """The policy's card; it only lends its networks."""
        return self.model.card

    async def paint(self, request: PaintRequest) -> AsyncGenerator[PaintEvent, None]:
        """The image, without decisions."""
        async with self._turn:
            yield Started("stock")
            image = await asyncio.to_thread(self._paint, request)
        yield Finished(image, "stock", self.model.card.size, STEPS, 2 * STEPS, 0, 1, float(STEPS))

    def _paint(self, request: PaintRequest) -> bytes:
        width, height = map(int, self.model.card.size.split("x"))
        images_BHWC = self._pipeline(
            request.prompt,
            num_inference_steps=STEPS,
            guidance_scale=self._guidance_scale,
            height=height,
            width=width,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="np",
        ).images
        return png((images_BHWC[0] * 255).round().astype("uint8"))
