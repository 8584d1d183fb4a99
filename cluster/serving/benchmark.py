"""How fast the endpoint is: diffusers' pipeline, the engine one image at a time, and continuous batching.

Always true here: the same clients send the same requests to each, over HTTP, through the same ingress on
the same Ray, one variant after the other; every image of the engine is compared with the one painted alone
without a server. docs/serving.md defines every number.
"""

from __future__ import annotations

import base64
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import httpx
import torch

from actors.contracts import EpisodeRequest
from actors.rollout import rollout
from cluster.serving.application import ServingSettings, served
from cluster.serving.models import ModelSource, open_model
from cluster.serving.painter import Painter, png
from cluster.serving.stock import StockPainter
from shapes.captions import TIERS, distinct_captions

STOCK, ONE, CONTINUOUS = "stock pipeline", "one at a time", "continuous batching"
WARM_UP = 4
"""Requests before the clock starts."""


@dataclass(frozen=True)
class Load:
    """So many requests, from so many clients that each wait for an answer before they ask again."""

    prompts: Sequence[str]
    clients: int
    slots: int


@dataclass(frozen=True)
class _Answer:
    seconds: float
    png: bytes
    nfe: int


def benchmark_prompts(count: int) -> list[str]:
    """Captions of the embedded world's test split, of all tiers; from the first again where they end."""
    captions = distinct_captions(0, -(-count // len(TIERS)), "test", exhaust=True)
    texts = [caption for caption, _ in captions]
    return [texts[index % len(texts)] for index in range(count)]


def measure(
    source: ModelSource,
    load: Load,
    settings: ServingSettings,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, Any]:
    """All variants on the Ray that is connected, as one JSON object. Raises UserError."""
    painters: dict[str, tuple[type, int]] = {
        STOCK: (StockPainter, 1),
        ONE: (Painter, 1),
        CONTINUOUS: (Painter, load.slots),
    }
    report: dict[str, Any] = {"requests": len(load.prompts), "clients": load.clients, "slots": load.slots}
    alone = _alone(source, load.prompts, settings, progress)
    variants: dict[str, dict[str, Any]] = {}
    for name, (painter, slots) in painters.items():
        sized = replace(
            settings, painter=replace(settings.painter, slots=slots), max_queue=load.clients + slots
        )
        with served(source, sized, painter=painter):
            answers, seconds = _ask_all(f"http://{settings.host}:{settings.port}", load, name, progress)
        variants[name] = _summary(answers, seconds)
        if painter is Painter:
            same = sum(answer.png == image for answer, image in zip(answers, alone, strict=True))
            variants[name]["identical"] = same
    report["variants"] = variants
    throughput = {name: variant["images_per_s"] for name, variant in variants.items()}
    report["continuous_vs_one_at_a_time"] = throughput[CONTINUOUS] / throughput[ONE]
    report["continuous_vs_stock"] = throughput[CONTINUOUS] / throughput[STOCK]
    report["p95_vs_stock"] = variants[CONTINUOUS]["p95_s"] / variants[STOCK]["p95_s"]
    return report


def table(report: dict[str, Any]) -> list[list[str]]:
    """The variants as rows; the first one is the header."""
    rows = [["", "images/s", "p50, s", "p95, s", "mean NFE", "identical"]]
    for name, variant in report["variants"].items():
        numbers = [f"{variant[key]:.3g}" for key in ("images_per_s", "p50_s", "p95_s", "nfe")]
        same = f"{variant['identical']}/{report['requests']}" if "identical" in variant else ""
        rows.append([name, *numbers, same])
    return rows


def _alone(
    source: ModelSource,
    prompts: Sequence[str],
    settings: ServingSettings,
    progress: Callable[[str, int, int], None],
) -> list[bytes]:
    """Every image without a server, one at a time."""
    torch.set_num_threads(settings.painter.torch_threads)
    model = open_model(source, source.version())
    painting, images = model.painting, []
    for seed, prompt in enumerate(prompts):
        (result,) = rollout(
            painting.engine,
            model.decider,
            painting.observer,
            [EpisodeRequest(prompt, seed)],
            slots=1,
            scorer=painting.scorer,
        )
        images.append(png(painting.engine.backbone.decode(result.latents_CHW[None])[0]))
        progress("alone", seed + 1, len(prompts))
    return images


def _ask_all(
    url: str, load: Load, name: str, progress: Callable[[str, int, int], None]
) -> tuple[list[_Answer], float]:
    """All answers in the order of the prompts, and the seconds from the first question to the last answer."""
    with (
        httpx.Client(base_url=url, timeout=None, limits=httpx.Limits(max_connections=load.clients)) as client,
        ThreadPoolExecutor(load.clients) as clients,
    ):

        def ask(numbered: tuple[int, str]) -> _Answer:
            seed, prompt = numbered
            started = time.perf_counter()
            response = client.post("/v1/images/generations", json={"prompt": prompt, "seed": seed})
            seconds = time.perf_counter() - started
            image = response.raise_for_status().json()["data"][0]
            return _Answer(seconds, base64.b64decode(image["b64_json"]), image["nfe"])

        numbered = list(enumerate(load.prompts))
        list(clients.map(ask, numbered[:WARM_UP]))
        started = time.perf_counter()
        answers = []
        for answer in clients.map(ask, numbered):
            answers.append(answer)
            progress(name, len(answers), len(numbered))
        return answers, time.perf_counter() - started


def _summary(answers: Sequence[_Answer], seconds: float) -> dict[str, Any]:
    latencies = sorted(answer.seconds for answer in answers)
    return {
        "images_per_s": len(answers) / seconds,
        "seconds": seconds,
        "p50_s": statistics.median(latencies),
        "p95_s": latencies[min(len(latencies) - 1, int(0.95 * len(latencies)))],
        "nfe": statistics.fmean(answer.nfe for answer in answers),
    }
