"""`python -m shapes.training`: train every model of the embedded world, in order, and publish them.

Each stage has a fixed number of steps and a fixed seed, picks up where it was interrupted, and is skipped
when its product is there. On one CPU core the whole takes a few hours; the denoiser is most of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from shapes import weights
from shapes.training.aesthetic import train_aesthetic
from shapes.training.clip import train_clip
from shapes.training.decoder import train_decoder
from shapes.training.diffusion import train_denoiser
from shapes.training.dino import train_dino
from shapes.training.preference import train_preference
from shapes.training.publish import publish
from shapes.training.samples import generate_samples
from shapes.training.text import train_text_encoder
from shapes.training.vae import train_vae

STAGES = (
    "vae",
    "text",
    "denoiser",
    "decoder",
    "clip",
    "dino",
    "aesthetic",
    "samples",
    "preference",
    "publish",
)


def main() -> None:
    """Run the named stages (default: all)."""
    parser = argparse.ArgumentParser(prog="python -m shapes.training", description=__doc__)
    parser.add_argument("stages", nargs="*", default=list(STAGES), metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--work", type=Path, default=Path("runs/world"), help="folder for data and states")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    options = parser.parse_args()
    unknown = [stage for stage in options.stages if stage not in STAGES]
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}; accepted: {', '.join(STAGES)}")
    torch.set_num_threads(options.threads)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    for stage in options.stages:
        match stage:
            case "vae":
                train_vae(work)
            case "text":
                train_text_encoder(work)
            case "denoiser":
                train_denoiser(work, train_vae(work), *train_text_encoder(work))
            case "decoder":
                train_decoder(work)
            case "clip":
                train_clip(work)
            case "dino":
                train_dino(work)
            case "aesthetic":
                train_aesthetic(work)
            case "samples":
                generate_samples(work)
            case "preference":
                train_preference(work)
            case "publish":
                publish(work, weights.PATH)


if __name__ == "__main__":
    main()
