"""A painter: the process that holds the backbone, and paints what the ingress sends.

Always true here: an image ends with the version it began with; a newer version is loaded beside it, and one
that cannot be loaded changes nothing; what goes wrong with an image is told without its prompt.
"""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from PIL import Image

from actors.contracts import DecisionRecord, EpisodeRequest, Images
from actors.errors import UserError, redacted
from actors.serving_loop import Painted, ServingLoop
from cluster.serving.events import Decided, Finished, ModelCard, PaintEvent, PaintRequest, Refused, Started
from cluster.serving.models import ModelSource, open_model

log = logging.getLogger("addiffusion.serving")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
"""Before a version that could not be loaded is tried again."""


@dataclass(frozen=True)
class PainterSettings:
    """slots: images that share a denoiser call; poll_s: seconds between two looks at the alias.

    torch_threads: a painter's own; the images of one thread do not depend on how many images share a call.
    """

    slots: int = 8
    poll_s: float = 5.0
    torch_threads: int = 1


class Painter:
    """Loads the model when it is made; from then on it can paint."""

    def __init__(self, source: ModelSource, settings: PainterSettings) -> None:
        self._source = source
        self._settings = settings
        self._loop = ServingLoop(slots=settings.slots, torch_threads=settings.torch_threads)
        self.model = open_model(source, source.version())
        self._refused_version: str | None = None
        self._failing_version: str | None = None
        self._failures = 0
        self._try_again_at = 0.0
        self._closed = threading.Event()
        if source.moves:
            threading.Thread(target=self._watch, name="alias", daemon=True).start()

    async def describe(self) -> ModelCard:
        """The version that new images get."""
        return self.model.card

    def __del__(self) -> None:
        """Called by Ray Serve, once what was begun has ended, before the process does."""
        if hasattr(self, "_closed") and not sys.is_finalizing():  # then no thread could end any more
            self.close()

    def close(self) -> None:
        """Finish what was begun, and paint nothing more."""
        self._closed.set()
        self._loop.close()

    def check_health(self) -> None:
        """Raises if nothing would be painted any more; Ray Serve then starts another painter."""
        if not self._loop.alive:
            raise RuntimeError("the painting thread has ended")

    async def paint(self, request: PaintRequest) -> AsyncGenerator[PaintEvent, None]:
        """Events of one image, as they happen. Who stops listening frees the slot."""
        model = self.model
        decider = model.decider_for(request.max_nfe, request.quality_floor)
        if isinstance(decider, Refused):
            yield decider
            return
        if request.size not in ("auto", model.card.size):
            yield Refused(
                400, f"size: accepted: {model.card.size} or auto", param="size", code="invalid_value"
            )
            return
        told: asyncio.Queue[PaintEvent | None] = asyncio.Queue()
        here = asyncio.get_running_loop()

        def tell(event: PaintEvent | None) -> None:
            here.call_soon_threadsafe(told.put_nowait, event)

        def decided(record: DecisionRecord, preview: Images | None) -> None:
            tell(_decided(record, preview))

        future = self._loop.submit(
            model.painting,
            EpisodeRequest(request.prompt, request.seed, max_nfe=request.max_nfe),
            decider,
            record_previews=request.previews,
            on_started=lambda: tell(Started(model.card.version)),
            on_decision=decided,
        )
        future.add_done_callback(lambda _: tell(None))
        try:
            while (event := await told.get()) is not None:
                yield event
            yield await asyncio.to_thread(_finished, future.result(), model.card)
        except Exception as error:
            # The text of an engine's error holds the prompt, which is its author's own business.
            log.error("an image could not be painted: %s", type(error).__name__)
            log.debug("its error", exc_info=error)
            yield Refused(500, "the image could not be painted", kind="server_error", code="painting_failed")
        finally:
            future.cancel()

    def _watch(self) -> None:
        """Look at the alias for as long as the process lives."""
        while not self._closed.wait(self._settings.poll_s):
            self.look_at_alias()

    def look_at_alias(self) -> None:
        """Load what the alias leads to, if that has changed.

        A version that nothing can be done about is not tried again; one that could not be fetched or had no
        room is, after a pause that grows.
        """
        version = None
        try:
            version = self._source.version()
            if version in (self.model.card.version, self._refused_version):
                return
            if version != self._failing_version:
                self._failing_version, self._failures = version, 0
            elif time.monotonic() < self._try_again_at:
                return
            self.model = open_model(self._source, version, beside=self.model)
            self._refused_version = self._failing_version = None
            log.info("new images are painted by version %s", version)
        except Exception as error:
            if version is not None and _is_about_content(error):
                self._refused_version = version
            elif version is not None:
                pause = min(_FIRST_PAUSE_S * 2.0**self._failures, _LONGEST_PAUSE_S)
                self._failures += 1
                self._try_again_at = time.monotonic() + pause
            kept = self.model.card.version
            told = redacted(str(error))
            log.error("version %s cannot be served, %s stays: %s", version or "unknown", kept, told)


def _is_about_content(error: Exception) -> bool:
    """Whether what was fetched is at fault: a registry or a disk that does not answer may do so later."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, UserError) and not isinstance(error.__cause__, (MlflowException, OSError))


def _decided(record: DecisionRecord, preview: Images | None) -> Decided:
    return Decided(
        action=record.action,
        step_index=record.step_index,
        timestep=record.timestep,
        nfe=record.nfe,
        attempt=record.attempt,
        image_reward=record.image_reward,
        preview_png=None if preview is None else png(preview),
    )


def _finished(painted: Painted, card: ModelCard) -> Finished:
    result = painted.result
    return Finished(
        png=png(painted.image_HWC),
        version=card.version,
        size=card.size,
        nfe=result.nfe,
        network_evals=result.network_evals,
        looks=result.looks,
        attempts=result.attempts,
        cost=result.cost,
    )


def png(image_HWC: Images) -> bytes:
    """The image as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, "PNG")
    return file.getvalue()
