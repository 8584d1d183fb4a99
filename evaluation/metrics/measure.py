"""Measures stored images: every metric that was asked for, of every method, measured or missing.

Always true here: image metrics are averaged over the seeds of a prompt and then over prompts, with an
interval that resamples prompts. Set metrics are computed for each seed number apart (one image a prompt, as
the field prints them) and averaged, with a t interval over the seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import t as student

from actors.errors import UserError
from actors.files import written_aside
from evaluation.metrics.collect import Collected, collect
from evaluation.metrics.config import MetricsConfig
from evaluation.metrics.contracts import (
    RESULTS_FILE,
    Floats,
    Measured,
    Measurement,
    Missing,
    UnmeasurableError,
)
from evaluation.metrics.definitions import METRICS, Metric, Reference
from evaluation.metrics.distances import Gaussian, gaussian
from evaluation.metrics.images import COSTS, ImageRecord, ImageSet, by_seed_number, read_sets
from evaluation.metrics.sources import Source, sources_of
from evaluation.progress import Progress
from evaluation.statistics import Resampling
from rewards_service.scorers_config import ScorersConfig

VALUES_FILE = "values.parquet"
FEATURES_FOLDER = "features"
_OPTION = "evaluation.metrics.reference"

Results = dict[str, dict[str, Measurement]]
"""By method and metric."""


@dataclass(frozen=True)
class Resamples:
    """How intervals of image metrics are made."""

    resamples: int = 10_000
    seed: int = 0


def measure(
    sets: Sequence[ImageSet],
    config: MetricsConfig,
    folder: Path,
    *,
    scorers: ScorersConfig | str | None = None,
    device: str = "cpu",
    intervals: Resamples | None = None,
    progress: Progress | None = None,
) -> Results:
    """Measure all sets; writes features, `values.parquet` and `metrics.json` into `folder`.

    scorers: as `evaluation.scorers` names them, None is the embedded world's. Raises UserError for images or
    a reference that cannot be read.
    """
    names = [each.name for each in sets]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{twice!r}: two sets of images of that name; give each method once")
    metrics = [METRICS[name] for name in config.names]
    features = {metric.feature for metric in metrics} - set(COSTS)
    sources, absent = sources_of(config, scorers, device)
    uncompared = _without_reference(config)
    features -= uncompared.keys()  # no model is fetched for what there is nothing to compare with
    absent = {**uncompared, **absent}
    collected = collect(
        sets,
        features,
        sources,
        absent,
        folder / FEATURES_FOLDER,
        batch_size=config.batch_size,
        progress=progress,
    )
    compared = features & {"inception", "cmmd_clip"}
    reference = _reference(config, compared, sources, absent, folder, progress)
    results: Results = {
        each.name: {
            metric.name: _measured(metric, each, collected, reference, intervals or Resamples())
            for metric in metrics
        }
        for each in sets
    }
    _write(folder, sets, results, config)
    return results


def as_json(results: Results) -> dict[str, dict[str, dict[str, Any]]]:
    """Results as `metrics.json` has them."""
    return {
        name: {metric: _as_json(found) for metric, found in measured.items()}
        for name, measured in results.items()
    }


def _as_json(measurement: Measurement) -> dict[str, Any]:
    if isinstance(measurement, Missing):
        return {"missing": measurement.reason}
    return {
        "value": measurement.value,
        "ci95": measurement.ci95,
        "images": measurement.images,
        "by_seed": measurement.by_seed,
        "model": measurement.model,
    }


def _measured(
    metric: Metric, images: ImageSet, collected: Collected, reference: Reference, intervals: Resamples
) -> Measurement:
    feature: NDArray[np.floating[Any]]
    model: str | None = None
    try:
        if metric.feature in COSTS:
            feature = _costs(images, metric.feature)
        else:
            feature = collected.features(images, metric.feature)[metric.feature]
            model = collected.stores[metric.feature][2]
        if metric.per_image is not None:
            values_N = metric.per_image(feature.astype(np.float64), images.records)
            return _of_images(metric, values_N, images.records, model, intervals)
        assert metric.of_set is not None
        groups = by_seed_number(images.records)
        by_seed = tuple(metric.of_set(feature[rows], reference) for rows in groups)
    except UnmeasurableError as error:
        return Missing(metric.name, str(error))
    return Measured(
        metric.name, float(np.mean(by_seed)), len(images), _t_interval(by_seed), None, by_seed, model
    )


def _of_images(
    metric: Metric,
    values_N: Floats,
    records: Sequence[ImageRecord],
    model: str | None,
    intervals: Resamples,
) -> Measured:
    by_prompt: dict[str, list[float]] = {}
    for record, value in zip(records, values_N, strict=True):
        by_prompt.setdefault(record.prompt, []).append(float(value))
    means_P = [float(np.mean(values)) for values in by_prompt.values()]
    ci95 = None
    if len(means_P) > 1 and "" not in by_prompt:
        found = Resampling(len(means_P), intervals.resamples, intervals.seed).mean(means_P)
        ci95 = (found.low, found.high)
    return Measured(metric.name, float(np.mean(means_P)), len(values_N), ci95, values_N, model=model)


def _costs(images: ImageSet, name: str) -> Floats:
    values = [getattr(record, name) for record in images.records]
    if any(value is None for value in values):
        raise UnmeasurableError(f"{images.name} has images without {name!r}")
    return np.array(values, dtype=np.float64)


def _t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    centre = float(np.mean(values))
    return centre - half, centre + half


def _reference(
    config: MetricsConfig,
    wanted: set[str],
    sources: Sequence[Source],
    absent: Mapping[str, str],
    folder: Path,
    progress: Progress | None,
) -> Reference:
    """The features of the real images, and why there are none."""
    if config.reference is None or not wanted:
        return Reference()
    path = Path(config.reference)
    if path.suffix == ".npz":
        return Reference(_moments(path))
    real = read_sets(path)
    if len(real) != 1:
        raise UserError(f"{_OPTION}={path}: images of {len(real)} methods; give one set")
    collected = collect(
        real,
        wanted,
        sources,
        absent,
        folder / FEATURES_FOLDER,
        batch_size=config.batch_size,
        progress=progress,
    )
    found, reasons = {}, {}
    for name in wanted:
        try:
            found[name] = collected.features(real[0], name)[name]
        except UnmeasurableError as error:
            reasons[name] = str(error)
    moments = gaussian(found["inception"]) if "inception" in found else None
    return Reference(moments, found.get("cmmd_clip"), reasons)


def _without_reference(config: MetricsConfig) -> dict[str, str]:
    """The features that are only compared and have nothing to be compared with, and why."""
    option = f"{_OPTION}={config.reference or 'null'}"
    if config.reference is None:
        return {
            "inception": f"{option}: give real images, or their mu and sigma",
            "cmmd_clip": f"{option}: give real images",
        }
    if Path(config.reference).suffix == ".npz":
        return {"cmmd_clip": f"{option}: has no images, of which cmmd needs embeddings"}
    return {}


def _moments(path: Path) -> Gaussian:
    """mu and sigma, as pytorch-fid and clean-fid store them."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            mean_D, covariance_DD = np.asarray(stored["mu"], float), np.asarray(stored["sigma"], float)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{_OPTION}={path}: no mu and sigma in it ({error})") from error
    if covariance_DD.shape != (mean_D.size, mean_D.size):
        raise UserError(
            f"evaluation.metrics.reference={path}: sigma is {covariance_DD.shape}, mu {mean_D.size}"
        )
    return Gaussian(mean_D.reshape(-1), covariance_DD)


def _write(folder: Path, sets: Sequence[ImageSet], results: Results, config: MetricsConfig) -> None:
    rows: dict[str, list[Any]] = {name: [] for name in ("method", "prompt", "seed", "metric", "value")}
    for each in sets:
        for name, measurement in results[each.name].items():
            if isinstance(measurement, Measured) and measurement.per_image_N is not None:
                rows["method"] += [each.name] * len(each)
                rows["prompt"] += [record.prompt for record in each.records]
                rows["seed"] += [record.seed for record in each.records]
                rows["metric"] += [name] * len(each)
                rows["value"] += measurement.per_image_N.tolist()
    with written_aside(folder / VALUES_FILE) as aside:
        pq.write_table(pa.table(rows), aside)
    with written_aside(folder / RESULTS_FILE) as aside:
        text = json.dumps(
            {"methods": as_json(results), "config": asdict(config)}, indent=2, ensure_ascii=False
        )
        aside.write_text(text + "\n", encoding="utf-8")
