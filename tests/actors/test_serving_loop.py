"""The serving loop: what it paints is what is painted alone, whoever shares the slots, fails or leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest
import torch

from actors.contracts import Conditioning, DecisionRecord, Denoised, EpisodeRequest, EpisodeResult, Images
from actors.engine import Engine, EngineConfig
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.rollout import rollout
from actors.serving_loop import Painted, PaintingModel, ServingLoop
from tests.actors.fakes import OracleBackbone, Scripted, SeededRandom, brightness_scorer

REQUESTS = [EpisodeRequest(("owl", "fox", "sky")[seed % 3], seed) for seed in range(23)]


class PoisonedBackbone(OracleBackbone):
    """Gives NaN for every image whose call an image of the prompt "bad" shares."""

    def denoise(
        self,
        latents_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        conditioning: Conditioning,
        guidance_scale_B: torch.Tensor,
        *,
        attention: bool = False,
    ) -> Denoised:
        bad_B = (conditioning.extras["truth"] == self.truth("bad")).flatten(1).all(dim=1)
        weight = float("nan") if bad_B.any() else 1.0
        self.poison = lambda prediction: prediction * weight
        return super().denoise(latents_BCHW, timesteps_B, conditioning, guidance_scale_B, attention=attention)


def make(backbone: OracleBackbone | None = None) -> PaintingModel:
    config = EngineConfig(actions=("continue", "stop", "look", "restart", "leap-2"))
    engine = Engine(backbone or OracleBackbone(), config)
    sizes = ObservationSizes(OracleBackbone.feature_dim, OracleBackbone.text_dim)
    observer = Observer(ObservationConfig(), sizes, engine.action_names)
    return PaintingModel(engine, observer, brightness_scorer)


def alone(model: PaintingModel, request: EpisodeRequest) -> EpisodeResult:
    (result,) = rollout(model.engine, SeededRandom(), model.observer, [request], slots=1, scorer=model.scorer)
    return result


def assert_is_the_one_painted_alone(model: PaintingModel, painted: Painted) -> None:
    expected = alone(model, painted.result.request)
    assert painted.result.decisions == expected.decisions
    assert (painted.result.nfe, painted.result.looks) == (expected.nfe, expected.looks)
    assert torch.equal(painted.result.latents_CHW, expected.latents_CHW)
    assert np.array_equal(painted.image_HWC, model.engine.backbone.decode(expected.latents_CHW[None])[0])


@pytest.fixture
def loop() -> Iterator[ServingLoop]:
    loop = ServingLoop(slots=4)
    yield loop
    loop.close()


def test_many_threads_get_the_images_that_are_painted_alone(loop: ServingLoop) -> None:
    model, futures = make(), dict[int, Future[Painted]]()

    def submit(start: int) -> None:
        for request in REQUESTS[start::4]:
            futures[request.seed] = loop.submit(model, request, SeededRandom())

    threads = [threading.Thread(target=submit, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for request in REQUESTS:
        painted = futures[request.seed].result(timeout=60)
        assert painted.result.request == request
        assert_is_the_one_painted_alone(model, painted)


def test_each_decision_is_told_as_it_is_taken_with_the_preview_it_was_taken_on(loop: ServingLoop) -> None:
    model = make()
    told: list[tuple[DecisionRecord, Images | None]] = []
    seen: list[str] = []

    def decided(record: DecisionRecord, preview: Images | None) -> None:
        seen.append("decision")
        told.append((record, preview))

    painted = loop.submit(
        model,
        REQUESTS[3],
        SeededRandom(),
        record_previews=True,
        on_started=lambda: seen.append("started"),
        on_decision=decided,
    ).result(timeout=60)
    assert seen[0] == "started"
    assert tuple(record for record, _ in told) == painted.result.decisions
    assert all(preview is not None and preview.shape == (8, 8, 3) for _, preview in told)


def test_a_failing_image_fails_alone(loop: ServingLoop) -> None:
    model = make(PoisonedBackbone())
    told: list[DecisionRecord] = []
    requests = [*REQUESTS[:3], EpisodeRequest("bad", 99), *REQUESTS[3:8]]
    futures = [
        loop.submit(model, request, SeededRandom(), on_decision=lambda record, _: told.append(record))
        for request in requests
    ]
    with pytest.raises(FloatingPointError, match="seed 99"):
        futures[3].result(timeout=60)
    painted = [future.result(timeout=60) for future in futures if future is not futures[3]]
    for one in painted:
        assert_is_the_one_painted_alone(model, one)
    assert len(told) == sum(len(one.result.decisions) for one in painted)  # nothing was told twice
    assert loop.alive


def test_two_models_share_the_slots(loop: ServingLoop) -> None:
    first, second = make(), make()
    futures = [loop.submit((first, second)[i % 2], r, SeededRandom()) for i, r in enumerate(REQUESTS[:8])]
    for future in futures:
        assert_is_the_one_painted_alone(first, future.result(timeout=60))


def test_who_leaves_frees_the_slot_and_is_not_painted() -> None:
    model, loop, go = make(), ServingLoop(slots=1), threading.Event()

    def hold(*_: object) -> None:
        go.wait(30)

    held = loop.submit(model, REQUESTS[0], Scripted(model.engine.action_names), on_decision=hold)
    waiting, after = (loop.submit(model, r, SeededRandom()) for r in REQUESTS[1:3])
    assert waiting.cancel()
    assert held.cancel()
    go.set()
    assert_is_the_one_painted_alone(model, after.result(timeout=60))
    with pytest.raises(CancelledError):
        held.result()
    loop.close()


def test_closing_finishes_what_was_submitted() -> None:
    model, loop = make(), ServingLoop(slots=2)
    futures = [loop.submit(model, request, SeededRandom()) for request in REQUESTS[:7]]
    loop.close()
    assert all(future.done() for future in futures)
    assert not loop.alive
    with pytest.raises(AssertionError, match="closed"):
        loop.submit(model, REQUESTS[0], SeededRandom())
