"""The benchmark of serving: the stock painter is diffusers' pipeline, and a small run of all variants."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.contracts import EpisodeRequest
from actors.engine import Engine
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.rollout import rollout
from cluster.serving.events import Finished, PaintRequest
from cluster.serving.models import ModelSource
from cluster.serving.painter import PainterSettings
from cluster.serving.stock import STEPS, StockPainter
from tests.actors.fakes import Scripted
from tests.cluster.conftest import Say
from tests.cluster.serving.world import saved_run


def test_the_stock_painter_paints_what_twenty_steps_of_dpm_solver_are(tmp_path: Path) -> None:
    run_dir = saved_run(tmp_path / "runs", "first")
    painter = StockPainter(ModelSource("first", run_dir.parent), PainterSettings())

    async def paint() -> Finished:
        events = [event async for event in painter.paint(PaintRequest("a red circle", 3))]
        assert isinstance(events[-1], Finished)
        return events[-1]

    finished = asyncio.run(paint())
    stock = np.asarray(Image.open(io.BytesIO(finished.png))).astype(int)
    trained = painter.model.painting.engine
    config = replace(trained.config, num_steps=STEPS, actions=("continue", "stop"), max_nfe=STEPS)
    engine = Engine(trained.backbone, config)
    sizes = ObservationSizes(trained.backbone.feature_dim, trained.backbone.text_dim)
    observer = Observer(ObservationConfig(), sizes, engine.action_names)
    always_on = Scripted(engine.action_names)
    (result,) = rollout(
        engine, always_on, observer, [EpisodeRequest("a red circle", 3)], slots=1, scorer=None
    )
    assert (finished.nfe, result.nfe) == (STEPS, STEPS)
    image = engine.backbone.decode(result.latents_CHW[None])[0].astype(int)
    assert np.abs(image - stock).max() <= 2  # of 255: rounding


@pytest.mark.parametrize("option", ["--requests", "--clients", "--slots"])
def test_a_mistake_is_one_line(option: str, say: Say) -> None:
    code, _, err = say("bench", "serving", option, "0")
    assert code == 2
    assert f"{option}=0" in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_variants_are_measured_and_every_image_is_the_one_painted_alone(
    say: Say, folder: Path, ray_session: None
) -> None:
    saved_run(folder / "runs", "first")
    sizes = ("--requests", "8", "--clients", "3", "--slots", "4")
    code, out, _ = say("bench", "serving", "first", *sizes, "--json", "serving.json")
    assert code == 0
    assert "continuous batching" in out
    report = json.loads((folder / "serving.json").read_text())
    assert set(report["variants"]) == {"stock pipeline", "one at a time", "continuous batching"}
    for name, variant in report["variants"].items():
        assert variant["images_per_s"] == pytest.approx(8 / variant["seconds"])
        assert 0.0 < variant["p50_s"] <= variant["p95_s"] <= variant["seconds"]
        assert variant.get("identical", 8) == 8, name
    assert report["variants"]["stock pipeline"]["nfe"] == STEPS
    assert report["continuous_vs_stock"] > 0.0
