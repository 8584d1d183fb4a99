"""Generated pictures with their verdicts: what the preference scorer has to tell apart.

Always true: captions are training captions, chunk i depends on its number and the pipeline alone, and
each trajectory keeps the previews of its clean prediction, all labelled by the final picture's score.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray

from shapes.captions import sample_caption
from shapes.render import PlacedObject
from shapes.training.files import log_line, save_npz
from shapes.training.scenes import object_maps
from shapes.training.text import token_ids
from shapes.verify import verify

CHUNK = 512
CHUNKS = range(0, 24)
BATCH = 32
STEPS = 10
GUIDANCE_SCALE = 3.0
PREVIEW_STEPS = (4, 5, 6, 7, 8, 9, 10)
"""Previews are kept after so many of the 10 denoiser calls; the last one is the final picture."""
TIER_SHARES = (0.1, 0.2, 0.35, 0.35)
SEEDS_PER_CAPTION = 2


@dataclass(frozen=True)
class Samples:
    """N trajectories: previews uint8 [N, 7, 64, 64, 3], captions, strict scores [N], maps [N, 8, 8]."""

    previews: NDArray[np.uint8]
    captions: list[str]
    strict: NDArray[np.float32]
    shape_map: NDArray[np.uint8]
    color_map: NDArray[np.uint8]


def load_pipeline(work: Path) -> StableDiffusionPipeline:
    """The pipeline with its final decoder, and plain attention: the fastest on a CPU at this size."""
    vae = AutoencoderTiny.from_pretrained(work / "decoder")
    pipeline = StableDiffusionPipeline.from_pretrained(work / "pipeline", vae=vae)
    pipeline.unet.set_attn_processor(AttnProcessor())
    pipeline.unet.eval()
    return pipeline


@torch.no_grad()
def sample_previews(
    pipeline: StableDiffusionPipeline,
    captions: list[str],
    generator: torch.Generator,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    keep: tuple[int, ...] = PREVIEW_STEPS,
) -> NDArray[np.uint8]:
    """DPM-Solver++(2M) from fresh noise: decoded clean predictions, uint8 [N, len(keep), 64, 64, 3]."""
    scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="linspace", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    ids = token_ids(pipeline.tokenizer, ["", *captions])
    text = pipeline.text_encoder(ids).last_hidden_state
    text = torch.cat([text[:1].expand(len(captions), -1, -1), text[1:]])
    latents = torch.randn(len(captions), 4, 16, 16, generator=generator)
    kept = []
    for number, timestep in enumerate(scheduler.timesteps, start=1):
        null, conditional = pipeline.unet(torch.cat([latents, latents]), timestep, text).sample.chunk(2)
        velocity = null + guidance_scale * (conditional - null)
        if number in keep:
            alpha = pipeline.scheduler.alphas_cumprod[timestep]
            clean = alpha.sqrt() * latents - (1 - alpha).sqrt() * velocity
            image = pipeline.vae.decode(clean / pipeline.vae.config.scaling_factor).sample
            kept.append(((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
        latents = scheduler.step(velocity, timestep, latents).prev_sample
    return np.stack(kept, axis=1)


def write_samples(path: Path, number: int, pipeline: StableDiffusionPipeline) -> None:
    """Generate chunk `number`: 512 trajectories, two seeds a caption."""
    rng = np.random.default_rng([30, number])
    generator = torch.Generator().manual_seed(30_000 + number)
    captions = [
        sample_caption(rng, 1 + int(rng.choice(4, p=TIER_SHARES)), "train")
        for _ in range(CHUNK // SEEDS_PER_CAPTION)
    ] * SEEDS_PER_CAPTION
    parts = [
        sample_previews(pipeline, captions[start : start + BATCH], generator)
        for start in range(0, CHUNK, BATCH)
    ]
    previews = np.concatenate(parts)
    verdicts = [verify(image, caption) for image, caption in zip(previews[:, -1], captions, strict=True)]
    maps = [
        object_maps([PlacedObject(d.color, d.shape, d.x, d.y, d.radius) for d in verdict.detections])
        for verdict in verdicts
    ]
    strict = np.array([verdict.strict for verdict in verdicts], np.float32)
    save_npz(
        path,
        previews=previews,
        captions=np.array(captions),
        strict=strict,
        shape_map=np.stack([shape for shape, _ in maps]),
        color_map=np.stack([color for _, color in maps]),
    )
    log_line(path.parent / "samples.jsonl", chunk=number, strict=float(strict.mean()))


def load_samples(folder: Path) -> Samples:
    """All chunks that stand in `folder`."""
    parts = []
    for path in sorted(folder.glob("samples-*.npz")):
        with np.load(path, allow_pickle=False) as file:
            parts.append({key: file[key] for key in file.files})
    assert parts, f"no generated samples in {folder}"
    return Samples(
        previews=np.concatenate([part["previews"] for part in parts]),
        captions=[str(caption) for part in parts for caption in part["captions"]],
        strict=np.concatenate([part["strict"] for part in parts]),
        shape_map=np.concatenate([part["shape_map"] for part in parts]),
        color_map=np.concatenate([part["color_map"] for part in parts]),
    )


def generate_samples(work: Path, chunks: range = CHUNKS) -> None:
    """Generate the chunks that are missing in `work/samples` with `work/pipeline`."""
    folder = work / "samples"
    folder.mkdir(exist_ok=True)
    pipeline = load_pipeline(work)
    for module in (pipeline.unet, pipeline.vae):
        module.to(memory_format=torch.channels_last)  # a fifth faster on CPUs
    for number in chunks:
        path = folder / f"samples-{number:03d}.npz"
        if not path.exists():
            write_samples(path, number, pipeline)
