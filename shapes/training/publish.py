"""Last stage: the trained models as fp16 safetensors in the package's folder.

Always true: the folder is replaced whole; a model that is missing leaves it as it was.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from shapes.training.samples import load_pipeline

PARTS = ("clip", "dino", "preference", "aesthetic.safetensors")


def publish(work: Path, target: Path) -> None:
    """Copy the products of all stages to `target`, the pipeline in half precision."""
    missing = [part for part in ("pipeline", "decoder", *PARTS) if not (work / part).exists()]
    if missing:
        raise FileNotFoundError(f"{work} has no {', '.join(missing)}: run those stages first")
    aside = target.with_name(target.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    load_pipeline(work).to(dtype=torch.float16).save_pretrained(aside / "pipeline")
    for part in PARTS:
        source = work / part
        if source.is_dir():
            shutil.copytree(source, aside / part)
        else:
            shutil.copy(source, aside / part)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(aside, target)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"published {size / 1e6:.1f} MB to {target}")  # noqa: T201
