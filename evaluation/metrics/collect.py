"""Runs the sources over stored images and keeps what they make.

Always true here: one source's models are in memory at a time; an image that has its features already is not
looked at again. A source that cannot be opened, or images it cannot judge, leave a reason and no feature; any
other failure stops the measurement, with everything so far kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from actors.contracts import Images
from evaluation.metrics.contracts import UnmeasurableError
from evaluation.metrics.feature_store import Features, FeatureStore, feature_key
from evaluation.metrics.images import ImageRecord, ImageSet, decode, digest, read_encoded
from evaluation.metrics.sources import Extractor, Source
from evaluation.progress import Progress

PART = 512
"""Images whose features are written at once: what a measurement that is killed does again at most."""


@dataclass
class Collected:
    """Where the features of every set are, and why some are not there."""

    digests: Mapping[str, Sequence[str]]
    """Of the images' files, by set."""
    stores: dict[str, tuple[Source, FeatureStore, str]] = field(default_factory=dict)
    """By feature: its source, where it is kept, and NAME@IDENTITY."""
    reasons: dict[tuple[str | None, str], str] = field(default_factory=dict)
    """By set (None: all sets) and feature."""

    def features(self, images: ImageSet, name: str) -> Features:
        """One feature of a set, in the order of its records. Raises UnmeasurableError with the reason."""
        reason = self.reasons.get((None, name)) or self.reasons.get((images.name, name))
        if reason is not None:
            raise UnmeasurableError(reason)
        source, store, _ = self.stores[name]
        return store.load(_keys(images, self.digests[images.name], source), [name])


def collect(
    sets: Sequence[ImageSet],
    wanted: Iterable[str],
    sources: Sequence[Source],
    absent: Mapping[str, str],
    folder: Path,
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> Collected:
    """Make the wanted features of all sets, as far as they can be made; `absent` says why some cannot."""
    digests = {each.name: [digest(read_encoded(record)) for record in each.records] for each in sets}
    assert len(digests) == len(sets), "two sets of one name"
    collected = Collected(digests)
    wanted = set(wanted)
    collected.reasons |= {(None, name): reason for name, reason in absent.items()}
    for source in sources:
        if outputs := wanted.intersection(source.outputs):
            _run(source, outputs, sets, collected, folder, batch_size, progress)
    without = wanted - set(collected.stores) - {name for _, name in collected.reasons}
    assert not without, f"nobody makes {sorted(without)}"
    return collected


def _run(
    source: Source,
    outputs: set[str],
    sets: Sequence[ImageSet],
    collected: Collected,
    folder: Path,
    batch_size: int,
    progress: Progress | None,
) -> None:
    try:
        identity = source.identity()
    except (ValueError, OSError) as error:
        collected.reasons |= {(None, name): str(error) for name in outputs}
        return
    store = FeatureStore(folder, source.name, identity)
    collected.stores |= {name: (source, store, f"{source.name}@{identity}") for name in outputs}
    known, extract = store.known(), None
    for images in sets:
        if source.needs_prompts and not images.has_prompts:
            reason = f"{images.name} has images without a prompt"
            collected.reasons |= {(images.name, name): reason for name in outputs}
            continue
        keys = _keys(images, collected.digests[images.name], source)
        todo = {key: record for key, record in zip(keys, images.records, strict=True) if key not in known}
        if not todo:
            continue
        try:
            extract = extract or source.open()
        except ValueError as error:
            collected.reasons |= {(None, name): str(error) for name in outputs}
            return
        try:
            for done in _extracted(extract, todo, store, batch_size):
                if progress is not None:
                    progress(f"{source.name}: {images.name}", len(images) - len(todo) + done, len(images))
        except UnmeasurableError as error:
            collected.reasons |= {(images.name, name): str(error) for name in outputs}
            known = store.known()  # parts that were kept before
        else:
            known |= todo.keys()


def _extracted(
    extract: Extractor, todo: Mapping[str, ImageRecord], store: FeatureStore, batch_size: int
) -> Iterator[int]:
    """Features of all images, kept part by part; how many there are after each part."""
    keys, done = list(todo), 0
    for start in range(0, len(keys), PART):
        part = keys[start : start + PART]
        made: dict[str, Features] = {}
        for first in range(0, len(part), batch_size):
            batch = part[first : first + batch_size]
            made |= _batch(extract, batch, [todo[key] for key in batch])
        names = next(iter(made.values())).keys()
        store.add(part, {name: np.stack([made[key][name] for key in part]) for name in names})
        done += len(part)
        yield done


def _batch(extract: Extractor, keys: Sequence[str], records: Sequence[ImageRecord]) -> dict[str, Features]:
    """A row of features by key; images of one shape go together."""
    by_shape: dict[tuple[int, ...], list[tuple[str, str, Images]]] = {}
    for key, record in zip(keys, records, strict=True):
        image = decode(read_encoded(record), record)
        by_shape.setdefault(image.shape, []).append((key, record.prompt, image))
    rows: dict[str, Features] = {}
    for alike in by_shape.values():
        features = extract(np.stack([image for *_, image in alike]), [prompt for _, prompt, _ in alike])
        for index, (key, *_) in enumerate(alike):
            rows[key] = {name: values[index] for name, values in features.items()}
    return rows


def _keys(images: ImageSet, digests: Sequence[str], source: Source) -> list[str]:
    return [
        feature_key(each, record.prompt if source.needs_prompts else "")
        for each, record in zip(digests, images.records, strict=True)
    ]
