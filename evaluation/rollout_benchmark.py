"""How fast the engine is: against itself one image at a time, and against diffusers' own pipeline.

    python -m evaluation.rollout_benchmark --architecture sd15 --random-weights --batch 1 4 --json sd15.json

Always true here: variants take turns within each repetition, the first of which is thrown away; a ratio is
one of medians. Needs neither Ray nor the command line's libraries: a GPU machine with torch and diffusers
will do. docs/benchmarks.md defines every number.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch

from actors.backbones.config import Dtype
from actors.backbones.from_pipeline import backbone_of
from actors.backbones.schedulers import matching_scheduler
from actors.engine import EngineConfig
from evaluation.architectures import ARCHITECTURES
from evaluation.random_clip import RandomClip
from evaluation.rollout_variants import VIEWS, Variants, Workload
from evaluation.stopwatch import peak_memory_mib, reset_peak_memory

Progress = Callable[[str, int, int], None]
"""Called with the variant that was measured, how many measurements are done, and how many there will be."""
PROMPTS = ("a red fox in the snow", "two blue owls on a branch", "an old tree", "a city at night")


@dataclass
class Measured:
    """Samples by name, one a repetition."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, values: dict[str, float]) -> None:
        """One repetition's values."""
        for name, value in values.items():
            self.samples.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        """None for what was not measured."""
        return median(self.samples[name]) if name in self.samples else None

    def ratio(self, name: str, other: str) -> float | None:
        """Of the medians."""
        above, below = self.median(name), self.median(other)
        return None if above is None or below is None else above / below


def run_benchmark(workload: Workload, progress: Progress) -> dict[str, Any]:
    """Everything that the workload allows, as one JSON object; None for what it does not.

    `samples` holds the single repetitions behind the medians.
    """
    workload.pipeline.scheduler = matching_scheduler(workload.pipeline.scheduler, workload.engine)
    device = workload.backbone.device
    variants, measured = Variants(workload), Measured()
    reset_peak_memory(device)
    variants.with_previews()
    peak_mib = peak_memory_mib(device)
    measures = {
        "rollout": variants.rollout,
        "decisions": variants.decisions,
        "stock": variants.engine_and_stock,
    }
    if workload.scorer is not None:
        measures["serial"] = variants.serial_and_batched
    if workload.client is not None:
        measures["scoring"] = variants.scoring
    for repetition in range(workload.repeats + 1):
        for number, (name, measure) in enumerate(measures.items(), start=1):
            values = measure()
            if repetition:
                measured.add(values)
            progress(name, repetition * len(measures) + number, len(measures) * (workload.repeats + 1))
    overhead = {view: measured.ratio(f"decision_{view}_s", f"step_{view}_s") for view in VIEWS}
    return {
        "denoiser_utilisation": measured.median("denoiser_utilisation"),
        "denoiser_utilisation_scoring": measured.median("denoiser_utilisation_scoring"),
        "episodes_per_s": measured.median("episodes_per_s"),
        "episodes_per_s_scoring": measured.median("episodes_per_s_scoring"),
        "previews_per_call_scoring": measured.median("previews_per_call_scoring"),
        "decision_overhead": {
            view: None if share is None else 100.0 * share for view, share in overhead.items()
        },
        "step_ms": 1000.0 * (measured.median("step_latent_s") or 0.0),
        "vs_serial": measured.ratio("serial_s", "batched_s"),
        "latent_vs_serial_seed": measured.ratio("serial_s", "batched_latent_s"),
        "vs_stock_pipeline": measured.ratio("stock_s", "engine_s"),
        "peak_memory_mib": peak_mib,
        "solver": workload.engine.solver,
        "num_steps": workload.engine.num_steps,
        "slots": workload.slots,
        "episodes": workload.episodes,
        "repeats": workload.repeats,
        "device": device_name(device),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "samples": measured.samples,
    }


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's model."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else str(device)


def table(reports: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The reports as columns, with the names in front; the first row is the header."""
    columns = [_cells(report) for report in reports]
    return [
        ["", *(f"{report['slots']} slots" for report in reports)],
        *([name, *(column[name] for column in columns)] for name in columns[0]),
    ]


def _cells(report: dict[str, Any]) -> dict[str, str]:
    """What a column says, by name; a dash for what was not measured."""

    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    overhead = report["decision_overhead"]
    return {
        "denoiser utilisation": cell(report["denoiser_utilisation"], ".3f"),
        "denoiser utilisation, scoring": cell(report["denoiser_utilisation_scoring"], ".3f"),
        "episodes/s": cell(report["episodes_per_s"], ".2f"),
        "episodes/s, scoring": cell(report["episodes_per_s_scoring"], ".2f"),
        "denoiser call, ms": cell(report["step_ms"], ".1f"),
        **{f"decision, {view}, % of a call": cell(overhead[view], ".2f") for view in VIEWS},
        "previews per call, scoring": cell(report["previews_per_call_scoring"], ".2f"),
        "times serial, both seed": cell(report["vs_serial"], ".2f"),
        "times serial seed, itself latent": cell(report["latent_vs_serial_seed"], ".2f"),
        "times stock pipeline": cell(report["vs_stock_pipeline"], ".3f"),
        "peak memory, MiB": cell(report["peak_memory_mib"], ".0f"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a published architecture with random weights, one run for each batch size; those that fit."""
    options = _parser().parse_args(arguments)
    architecture = ARCHITECTURES[options.architecture]
    resolution = options.resolution or architecture.resolution
    cuda = options.device.startswith("cuda")
    dtype_name = options.dtype or (architecture.dtype if cuda else "float32")
    dtype = getattr(torch, dtype_name)
    pipeline = architecture.build(options.device, dtype, resolution)
    clip = RandomClip(options.device, dtype)
    num_steps = options.steps or architecture.num_steps
    reports = []
    for batch in options.batch:
        workload = Workload(
            pipeline=pipeline,
            backbone=backbone_of(pipeline),
            engine=EngineConfig(
                solver=options.solver or architecture.solver,
                num_steps=num_steps,
                warmup_steps=min(3, num_steps - 1),
                guidance_scale=architecture.guidance_scale,
            ),
            prompts=PROMPTS,
            slots=batch,
            episodes=options.episodes or 2 * batch,
            repeats=options.repeats,
            scorer=clip,
            embedding_dim=clip.embedding_dim,
        )
        try:
            reports.append(run_benchmark(workload, _print_progress))
        except torch.OutOfMemoryError:
            print(f"{batch} slots: out of memory, no larger batch is tried", file=sys.stderr)  # noqa: T201
            break
    if not reports:
        raise SystemExit(1)
    rows = table(reports)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for name, *values in rows:
        cells = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *cells]))  # noqa: T201
    limit_gb = architecture.memory_gb
    fitting = [report["slots"] for report in reports if report["peak_memory_mib"] * 2**20 <= limit_gb * 1e9]
    verdict = f"up to {max(fitting)} slots" if fitting else "at no number of slots measured"
    print(f"within {limit_gb:.0f} GB, previews included: {verdict}")  # noqa: T201
    if options.json is not None:
        summary = {
            "architecture": options.architecture,
            "weights": "random",
            "resolution": resolution,
            "dtype": dtype_name,
            "memory_limit_gb": limit_gb,
            "slots_within_limit": max(fitting, default=None),
            "runs": reports,
        }
        options.json.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m evaluation.rollout_benchmark", description=main.__doc__)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), required=True)
    parser.add_argument(
        "--random-weights", action="store_true", required=True, help="said aloud: every image is noise"
    )
    parser.add_argument("--batch", type=_positive, nargs="+", default=[1, 2, 4, 8, 16], metavar="SLOTS")
    parser.add_argument("--episodes", type=_positive, help="of a rollout; by default two a slot")
    parser.add_argument("--resolution", type=_positive, help="pixels a side; by default as published")
    parser.add_argument("--steps", type=_positive, help="of the schedule; by default as published")
    parser.add_argument("--solver", choices=("ddim", "dpmpp"), help="of sd15 and sdxl; by default dpmpp")
    parser.add_argument("--repeats", type=_positive, default=5)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=get_args(Dtype), help="by default as published, on a CPU float32")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _print_progress(variant: str, done: int, total: int) -> None:
    print(f"\r{done}/{total} {variant:<12}", end="\n" if done == total else "", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
