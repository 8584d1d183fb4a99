"""Stored images for tests: scenes of the embedded world, written as the evaluation stores its images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.contracts import Images
from evaluation.metrics.images import encode
from shapes.captions import distinct_captions
from shapes.render import render_scene


def scenes(prompts: int, seeds: int, *, wrong: bool = False) -> list[dict[str, Any]]:
    """Rows of faithful pictures, or of pictures that show the next prompt's scene, and pale."""
    rng = np.random.default_rng(0)
    captions = [caption for caption, _ in distinct_captions(0, prompts, "test")][:prompts]
    rows = []
    for index, caption in enumerate(captions):
        for number in range(seeds):
            image: Images = render_scene(captions[(index + wrong) % prompts], rng)
            if wrong:
                image = (image // 2 + 64).astype(np.uint8)
            rows.append({"prompt": caption, "seed": 100 * index + number, "image": image})
    return rows


def write_table(path: Path, methods: Mapping[str, list[dict[str, Any]]]) -> Path:
    """One Parquet table with the images of all methods."""
    rows = []
    for name, made in methods.items():
        for row in made:
            others = {key: value for key, value in row.items() if key != "image"}
            rows.append({"method": name, **others, "png": encode(row["image"])})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    return path
