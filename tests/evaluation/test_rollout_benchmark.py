"""The benchmark's numbers follow from a clock that only fakes move; networks have their published size."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FluxPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from actors.contracts import Conditioning, Denoised, Images
from actors.engine import EngineConfig
from evaluation import rollout_benchmark
from evaluation.architectures import ARCHITECTURES, letter_tokenizer, letter_tokenizer_t5
from evaluation.random_clip import RandomClip
from evaluation.rollout_benchmark import main, run_benchmark, table
from evaluation.rollout_variants import Workload
from tests.actors.folders import save_flux, save_stable_diffusion, save_stable_diffusion_xl
from tests.evaluation.fakes import FakeBackbone

STEP, ENCODE, DECODE, SCORE, STOCK = 1.0, 2.0, 0.25, 0.5, 9.0
ENGINE = EngineConfig(num_steps=6, warmup_steps=2, stop_from=0.9, max_nfe=3, actions=("continue", "look"))
EMBEDDING_DIM = 5


class Clock:
    """Seconds that pass only when a fake works."""

    now = 0.0

    def spend(self, seconds: float) -> None:
        self.now += seconds


class SlowBackbone(FakeBackbone):
    """The fake backbone, at a price for each call."""

    clock: Clock

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        self.clock.spend(ENCODE)
        return super().encode_prompts(prompts)

    def denoise(self, *args: Any, **kwargs: Any) -> Denoised:
        self.clock.spend(STEP)
        return super().denoise(*args, **kwargs)

    def decode(self, latents_BCHW: torch.Tensor) -> Images:
        self.clock.spend(DECODE)
        return super().decode(latents_BCHW)

    def preview(self, latents_BCHW: torch.Tensor) -> Images:
        return super().decode(latents_BCHW)


class StockPipeline:
    """Takes the same time whatever it is asked, and remembers what that was."""

    vae_scale_factor = 8

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.scheduler: Any = DDIMScheduler()
        self.calls: list[dict[str, Any]] = []

    def set_progress_bar_config(self, **options: Any) -> None:
        pass

    def __call__(self, prompts: list[str], **options: Any) -> None:
        self.clock.spend(STOCK)
        self.calls.append({"prompts": prompts, **options})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("evaluation.stopwatch.time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


def workload(clock: Clock, slots: int, episodes: int, scored: bool = True) -> Workload:
    backbone = SlowBackbone()
    backbone.clock = clock

    def scorer(images: Images, prompts: Sequence[str]) -> dict[str, Any]:
        clock.spend(SCORE)
        ones = np.ones((len(images), EMBEDDING_DIM), np.float32)
        return {"clip_image": ones, "clip_text": ones, "image_reward": ones[:, 0]}

    return Workload(
        pipeline=StockPipeline(clock),
        backbone=backbone,
        engine=ENGINE,
        prompts=["sky", "owl", "fox"],
        slots=slots,
        episodes=episodes,
        repeats=3,
        scorer=scorer if scored else None,
        embedding_dim=EMBEDDING_DIM,
    )


def silent(variant: str, done: int, total: int) -> None:
    assert 0 < done <= total


def test_ratios_are_those_of_the_time_that_passed(clock: Clock) -> None:
    work = workload(clock, slots=4, episodes=4)
    report = run_benchmark(work, silent)
    assert report["decision_overhead"] == pytest.approx(
        {"latent": 0, "timestep": 0, "seed": 100 * SCORE / STEP}
    )
    engine_s = ENCODE + ENGINE.num_steps * STEP + DECODE
    assert report["vs_stock_pipeline"] == pytest.approx(STOCK / engine_s)
    assert report["step_ms"] == 1000 * STEP
    for busy, speed in zip(
        report["samples"]["denoiser_utilisation"], report["samples"]["episodes_per_s"], strict=True
    ):
        seconds = 4 / speed
        assert busy == pytest.approx(
            (seconds - ENCODE) / seconds
        )  # one filling of the slots, then only calls
    assert [len(values) for values in report["samples"].values()] == [3] * len(report["samples"])


def test_serial_pays_for_every_call_of_every_episode(clock: Clock) -> None:
    report = run_benchmark(workload(clock, slots=6, episodes=6), silent)
    for serial, batched in zip(report["samples"]["serial_s"], report["samples"]["batched_s"], strict=True):
        assert ENCODE + (2 + 1) * STEP <= batched <= ENCODE + 6 * STEP + 4 * SCORE
        assert 6 * (ENCODE + (2 + 1) * STEP) <= serial <= 6 * (ENCODE + 6 * STEP + 4 * SCORE)
    assert report["vs_serial"] > 2


def test_stock_makes_the_same_images(clock: Clock) -> None:
    work = workload(clock, slots=2, episodes=2)
    run_benchmark(work, silent)
    calls = work.pipeline.calls
    assert type(work.pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert len({prompt for call in calls for prompt in call["prompts"]}) == 2 * len(calls)  # none twice
    assert all(call["num_inference_steps"] == ENGINE.num_steps for call in calls)
    assert all(call["guidance_scale"] == ENGINE.guidance_scale for call in calls)


def test_what_was_not_measured_is_none_and_a_dash(clock: Clock) -> None:
    report = run_benchmark(workload(clock, slots=2, episodes=2, scored=False), silent)
    assert report["vs_serial"] is None
    assert report["decision_overhead"]["seed"] is None
    cells = dict(table([report])[1:])
    assert cells["times serial, both seed"] == "-"
    assert cells["times stock pipeline"] == f"{report['vs_stock_pipeline']:.3f}"


@pytest.mark.parametrize(
    ("name", "resolution", "counts"),
    [
        ("sd15", 512, {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
        (
            "sdxl",
            1024,
            {
                "unet": 2_567_463_684,
                "vae": 83_653_863,
                "text_encoder": 123_060_480,
                "text_encoder_2": 694_659_840,
            },
        ),
        (
            "flux",
            1024,
            {
                "transformer": 11_891_178_560,
                "vae": 83_819_683,
                "text_encoder": 123_060_480,
                "text_encoder_2": 4_762_310_656,
            },
        ),
    ],
)
def test_architectures_have_the_published_numbers_of_parameters(
    name: str, resolution: int, counts: dict[str, int]
) -> None:
    made = ARCHITECTURES[name].build("meta", torch.float16, resolution)
    parts = {part: getattr(made, part) for part in counts}
    assert {part: sum(p.numel() for p in network.parameters()) for part, network in parts.items()} == counts
    assert {network.dtype for network in parts.values()} == {torch.float16}


def test_clip_stands_in_at_its_published_size() -> None:
    tower = RandomClip("meta", torch.float16)._tower
    assert sum(parameter.numel() for parameter in tower.parameters()) == 303_966_208


def test_prompts_are_as_long_as_published() -> None:
    for tokenizer, tokens in ((letter_tokenizer(77), 77), (letter_tokenizer_t5(512), 512)):
        assert len(tokenizer("a red fox", padding="max_length", max_length=tokens).input_ids) == tokens


def tiny_flux(folder: Path) -> FluxPipeline:
    save_flux(folder, dev=False)
    loaded = FluxPipeline.from_pretrained(folder)
    loaded.default_sample_size = 8
    return loaded


def tiny_sdxl(folder: Path) -> StableDiffusionXLPipeline:
    save_stable_diffusion_xl(folder)
    return StableDiffusionXLPipeline.from_pretrained(folder)


def tiny_sd(folder: Path) -> StableDiffusionPipeline:
    save_stable_diffusion(folder)
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


@pytest.mark.parametrize(("name", "make"), [("sd15", tiny_sd), ("sdxl", tiny_sdxl), ("flux", tiny_flux)])
def test_the_module_runs_by_itself(
    name: str,
    make: Callable[[Path], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Clip:
        embedding_dim = 4

        def __init__(self, *options: Any) -> None:
            pass

        def __call__(self, images: Images, prompts: Sequence[str]) -> dict[str, Any]:
            ones = np.ones((len(images), 4), np.float32)
            return {"clip_image": ones, "clip_text": ones, "image_reward": ones[:, 0]}

    pipeline = make(tmp_path / "made")
    tiny = replace(ARCHITECTURES[name], build=lambda device, dtype, resolution: pipeline, memory_gb=1e-6)
    monkeypatch.setitem(ARCHITECTURES, name, tiny)
    monkeypatch.setattr(rollout_benchmark, "RandomClip", Clip)
    out = tmp_path / "out.json"
    arguments = f"--architecture {name} --random-weights --batch 1 2 --steps 4 --repeats 1 --device cpu"
    main([*arguments.split(), "--dtype", "float32", "--json", str(out)])
    summary = json.loads(out.read_text())
    assert [run["slots"] for run in summary["runs"]] == [1, 2]
    assert 0.0 < summary["runs"][1]["denoiser_utilisation"] <= 1.0
    assert summary["runs"][1]["vs_serial"] > 0.0
    assert summary["slots_within_limit"] is None
    printed = capsys.readouterr().out
    assert "previews included: at no number of slots" in printed
    assert "1 slots  2 slots" in printed
