"""A painter on the embedded world's own networks: images as painted alone, floors, and versions that come."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.backbones.config import BackboneConfig
from actors.errors import UserError
from cluster.runs import settings_by_name
from cluster.serving.events import Decided, Finished, PaintEvent, PaintRequest, Refused, Started
from cluster.serving.models import ModelSource, check_source, open_model, reached_quality
from cluster.serving.painter import Painter, PainterSettings
from learner.champions import Champions
from learner.registry import new_run, register, tracking_uri
from shapes import weights
from tests.cluster.serving.world import CERTIFICATE, PROMPTS, Alone, registered, saved_run, shapes_policy


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, of which one is calibrated."""
    runs_dir = tmp_path_factory.mktemp("serving") / "runs"
    saved_run(runs_dir, "first", 0)
    saved_run(runs_dir, "calibrated", 0, calibration=CERTIFICATE)
    return runs_dir


@pytest.fixture(scope="module")
def painter(runs_dir: Path) -> Iterator[Painter]:
    painter = Painter(ModelSource("first", runs_dir), PainterSettings(slots=4))
    yield painter
    painter.close()


@pytest.fixture(scope="module")
def calibrated(runs_dir: Path) -> Iterator[Painter]:
    painter = Painter(ModelSource("calibrated", runs_dir), PainterSettings(slots=4))
    yield painter
    painter.close()


def paint_all(painter: Painter, requests: list[PaintRequest]) -> list[list[PaintEvent]]:
    """Events of each, all at once."""

    async def one(request: PaintRequest) -> list[PaintEvent]:
        return [event async for event in painter.paint(request)]

    async def run() -> list[list[PaintEvent]]:
        return await asyncio.gather(*map(one, requests))

    return asyncio.run(run())


def png_of(events: list[PaintEvent]) -> bytes:
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1].png


def test_images_side_by_side_are_those_painted_alone(painter: Painter, runs_dir: Path) -> None:
    requests = [PaintRequest(PROMPTS[seed % 4], seed, max_nfe=None if seed % 3 else 6) for seed in range(14)]
    alone = Alone(runs_dir / "first" / "policy")
    painted = paint_all(painter, requests)
    for request, events in zip(requests, painted, strict=True):
        assert png_of(events) == alone.png(request.prompt, request.seed, max_nfe=request.max_nfe)
    costs = {events[-1].nfe for events in painted if isinstance(events[-1], Finished)}
    assert len(costs) > 1  # or all slots would have been refilled together


def test_events_tell_how_it_came_about(painter: Painter) -> None:
    (events,) = paint_all(painter, [PaintRequest("a red circle", 3, previews=True)])
    assert isinstance(events[0], Started)
    decisions = [event for event in events if isinstance(event, Decided)]
    assert len(decisions) == len(events) - 2
    for decision in decisions:
        assert decision.preview_png is not None
        assert Image.open(io.BytesIO(decision.preview_png)).size == (64, 64)
    assert isinstance(events[-1], Finished)
    assert events[-1].nfe >= decisions[-1].nfe
    final = np.asarray(Image.open(io.BytesIO(events[-1].png)))
    assert final.shape == (64, 64, 3)


def test_a_size_that_the_model_does_not_have_is_refused(painter: Painter) -> None:
    refused, fits = paint_all(
        painter, [PaintRequest("a fox", 1, "512x512"), PaintRequest("a fox", 1, "64x64")]
    )
    (refusal,) = refused
    assert isinstance(refusal, Refused)
    assert (refusal.status, refusal.param) == (400, "size")
    assert "64x64" in refusal.message
    assert isinstance(fits[-1], Finished)


def test_without_a_calibration_no_floor_is_promised(painter: Painter) -> None:
    ((refusal,),) = paint_all(painter, [PaintRequest("a fox", 1, quality_floor=0.0)])
    assert isinstance(refusal, Refused)
    assert refusal.status == 422
    assert "never calibrated" in refusal.message


def test_a_floor_is_reached_stopping_early_or_never_doing_so_or_not_at_all(
    calibrated: Painter, runs_dir: Path
) -> None:
    alone = Alone(runs_dir / "calibrated" / "policy")
    seeds = range(6)
    low, high = (
        paint_all(calibrated, [PaintRequest("a red circle", seed, quality_floor=floor) for seed in seeds])
        for floor in (0.75, 0.8)
    )
    for seed in seeds:
        assert png_of(low[seed]) == alone.png("a red circle", seed)
        assert png_of(high[seed]) == alone.png("a red circle", seed, careful=True)
    spent = [sum(e[-1].nfe for e in events if isinstance(e[-1], Finished)) for events in (low, high)]
    assert spent[0] < spent[1], "stopping early saves"
    ((refusal,), (other,)) = paint_all(
        calibrated,
        [
            PaintRequest("a fox", 1, quality_floor=0.81),
            PaintRequest("a fox", 1, quality_floor=0.7, max_nfe=3),
        ],
    )
    for refused, named in ((refusal, "0.8000"), (other, "max_nfe")):
        assert isinstance(refused, Refused)
        assert (refused.status, refused.param) == (422, "quality_floor")
        assert named in refused.message


def test_a_certificate_without_what_a_floor_needs_promises_nothing() -> None:
    assert reached_quality({}) is None
    assert reached_quality({"calibration": {"stop_threshold": 0.5}}) is None
    assert reached_quality({"calibration": CERTIFICATE}) == {
        "score": "held-out score",
        "stopping_early": pytest.approx(0.75),
        "never_stopping_early": 0.8,
        "confidence": 0.95,
    }


def test_an_error_is_told_without_the_prompt(
    runs_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = Painter(ModelSource("first", runs_dir), PainterSettings(slots=2))

    def poisoned(*args: object, **options: object) -> object:
        raise FloatingPointError("not finite: prompt 'a very private wish'")

    monkeypatch.setattr(painter.model.painting.engine.backbone, "denoise", poisoned)
    with caplog.at_level(logging.INFO):
        (events,) = paint_all(painter, [PaintRequest("a very private wish", 1)])
    assert isinstance(events[-1], Refused)
    assert events[-1].status == 500
    assert "private" not in events[-1].message
    assert "private" not in caplog.text
    painter.check_health()
    painter.close()
    with pytest.raises(RuntimeError, match="ended"):
        painter.check_health()


@pytest.fixture
def registry(tmp_path: Path) -> tuple[Path, Callable[[int], str]]:
    """An empty registry's runs_dir, and what registers a policy of a seed as the champion."""
    runs_dir = tmp_path / "runs"
    runs_dir.mkdir()

    def promote(seed: int) -> str:
        return registered(runs_dir, shapes_policy(tmp_path / f"policy-{seed}", seed))

    return runs_dir, promote


def test_the_alias_is_followed_and_what_began_ends_with_its_version(
    registry: tuple[Path, Callable[[int], str]], tmp_path: Path
) -> None:
    runs_dir, promote = registry
    assert promote(0) == "1"
    source = ModelSource("addiffusion-shapes@champion", runs_dir)
    painter = Painter(source, PainterSettings(slots=2, poll_s=3600.0))
    first = painter.model

    async def run() -> list[list[PaintEvent]]:
        requests = [PaintRequest("a red circle", seed) for seed in range(6)]
        before = [asyncio.create_task(listen(request)) for request in requests]
        await asyncio.sleep(0)  # all have the first version now; two have a slot
        promote(1)
        await asyncio.to_thread(painter.look_at_alias)
        after = [asyncio.create_task(listen(request)) for request in requests]
        return [await task for task in (*before, *after)]

    async def listen(request: PaintRequest) -> list[PaintEvent]:
        return [event async for event in painter.paint(request)]

    painted = asyncio.run(run())
    assert painter.model.bench is first.bench  # the backbone was not loaded again
    for version, folder, part in (("1", "policy-0", painted[:6]), ("2", "policy-1", painted[6:])):
        alone = Alone(tmp_path / folder)
        for seed, events in enumerate(part):
            assert isinstance(events[-1], Finished)
            assert events[-1].version == version
            assert events[-1].png == alone.png("a red circle", seed)
    assert [png_of(events) for events in painted[:6]] != [png_of(events) for events in painted[6:]]
    painter.close()


def test_a_version_that_cannot_be_loaded_changes_nothing(
    registry: tuple[Path, Callable[[int], str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs_dir, promote = registry
    promote(0)
    painter = Painter(ModelSource("addiffusion-shapes@champion", runs_dir), PainterSettings(poll_s=3600.0))
    other = shapes_policy(tmp_path / "other", 2, backbone="pipeline@000000000000")
    registered(runs_dir, other)
    painter.look_at_alias()
    painter.look_at_alias()
    assert painter.model.card.version == "1"
    assert caplog.text.count("version 2 cannot be served, 1 stays") == 1  # not again at every look
    assert isinstance(paint_all(painter, [PaintRequest("a fox", 1)])[0][-1], Finished)
    (runs_dir / "mlflow.db").rename(runs_dir / "gone.db")
    painter.look_at_alias()
    assert isinstance(paint_all(painter, [PaintRequest("a fox", 1)])[0][-1], Finished)
    (runs_dir / "gone.db").rename(runs_dir / "mlflow.db")
    promote(3)
    painter.look_at_alias()
    assert painter.model.card.version == "3"
    painter.close()


def test_a_version_that_could_not_be_fetched_is_tried_again(
    registry: tuple[Path, Callable[[int], str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs_dir, promote = registry
    promote(0)
    painter = Painter(ModelSource("addiffusion-shapes@champion", runs_dir), PainterSettings(poll_s=3600.0))
    promote(1)
    tries = 0

    def unreachable(source: ModelSource, version: str) -> Path:
        nonlocal tries
        tries += 1
        cause = OSError("http://someone:hidden-word@registry does not answer")
        raise cause if tries > 1 else UserError("not in the registry") from cause

    with monkeypatch.context() as patched:
        patched.setattr(ModelSource, "folder", unreachable)
        painter.look_at_alias()
        painter.look_at_alias()
        assert tries == 1, "not at every look"
        patched.setattr(painter, "_try_again_at", 0.0)
        painter.look_at_alias()
        assert tries == 2
    assert painter.model.card.version == "1"
    assert "hidden-word" not in caplog.text
    painter._try_again_at = 0.0
    painter.look_at_alias()
    assert painter.model.card.version == "2"
    painter.close()


def test_names_that_lead_nowhere_are_one_line(registry: tuple[Path, Callable[[int], str]]) -> None:
    runs_dir, promote = registry
    for name in ("nothing", "addiffusion-shapes@champion", "addiffusion-shapes/7"):
        with pytest.raises(UserError) as raised:
            check_source(ModelSource(name, runs_dir))
        assert "\n" not in str(raised.value)
    promote(0)
    uri = tracking_uri(runs_dir)
    assert Champions(uri).find("addiffusion-shapes@champion").version == "1"
    assert check_source(ModelSource("addiffusion-shapes/1", runs_dir)) == "1"
    for name in ("addiffusion-shapes@champion", "addiffusion-shapes/1"):
        assert check_source(ModelSource(name, runs_dir.parent, uri)) == "1", "where --tracking-uri says"
    with pytest.raises(UserError):
        check_source(ModelSource("addiffusion-shapes@candidate", runs_dir))


@pytest.mark.parametrize("name", ["addiffusion-shapes@champion", "addiffusion-shapes/1"])
def test_a_registered_version_is_opened_as_its_run_was_configured(tmp_path: Path, name: str) -> None:
    runs_dir, scorers = tmp_path / "runs", tmp_path / "scorers"
    runs_dir.mkdir()
    scorers.symlink_to(weights.PATH)
    overrides = [f"backbone.scorers={scorers}", "backbone.dtype=bfloat16"]
    registered(runs_dir, shapes_policy(tmp_path / "policy"), overrides=overrides)
    source = ModelSource(name, runs_dir)
    recipe = open_model(source, source.version()).recipe
    assert recipe.scorers == str(scorers)
    assert recipe.backbone.dtype == "bfloat16"
    assert settings_by_name(name, runs_dir).evaluation.dtype == "bfloat16"


def test_a_version_without_its_run_s_options_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    uri = tracking_uri(tmp_path / "runs")
    register(
        shapes_policy(tmp_path / "policy"),
        name="addiffusion-shapes",
        uri=uri,
        run_id=new_run(uri, "test", "test", {}),
        metrics={},
        step=0,
        config={},
        tags={},
        alias="champion",
    )
    with pytest.raises(UserError, match="addiffusion-shapes/1'") as raised:
        check_source(ModelSource("addiffusion-shapes@champion", tmp_path / "runs"))
    assert "\n" not in str(raised.value)


def test_a_folder_without_its_run_is_opened_as_the_policy_says(tmp_path: Path) -> None:
    options = {**asdict(BackboneConfig()), "device": "cuda", "dtype": "bfloat16", "scorers": "somewhere"}
    folder = shapes_policy(tmp_path / "exported", backbone_config=options)
    found = settings_by_name(str(folder), tmp_path).evaluation
    assert (found.device, found.dtype, found.scorers) == ("cuda", "bfloat16", "somewhere")
