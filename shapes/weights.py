"""Where the embedded world's trained models lie.

Always true: the folder holds `pipeline/` (a diffusers StableDiffusionPipeline), `clip/` (open_clip),
`dino/` (transformers), `preference/` and `aesthetic.safetensors`, all fp16, as `shapes.training` wrote
them.
"""

from __future__ import annotations

from pathlib import Path

PATH = Path(__file__).parent / "models"
