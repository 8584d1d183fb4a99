"""Traces: images of the policy made once more, with what there was at every decision.

Always true here: the same requests through the same policy give the same decisions as the evaluation's rows;
quality at a decision is the metric of the preview, which the policy never saw. Masks are those that the
engine's refinements used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from actors.actions import Refine
from actors.contracts import Decider, EpisodeRequest, Images
from actors.engine import Engine, Episode
from actors.errors import UserError
from actors.files import written_aside
from evaluation.bench import Bench
from evaluation.generate import Generated, Job, generate
from evaluation.methods import OpenMethod, PolicyMethod
from evaluation.rows import ImageRow

TRACES_FILE = Path("evaluation/traces.parquet")
"""Where a run keeps the quality at each decision of its traced images."""

_SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("tier", pa.string()),
        ("nfe", pa.list_(pa.int64())),
        ("quality", pa.list_(pa.float64())),
        ("actions", pa.list_(pa.string())),
    ]
)
Mask = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Trace:
    """One image: NFE and the preview's quality at each action, and last those of what was returned."""

    prompt: str
    seed: int
    tier: str | None
    nfe: tuple[int, ...]
    quality: tuple[float, ...]
    actions: tuple[str, ...]


@dataclass(frozen=True)
class Traced:
    """Images made again, their traces, and by image and decision the masks of its refinements (0 to 255)."""

    made: Generated
    traces: tuple[Trace, ...]
    masks: dict[tuple[EpisodeRequest, int], Mask]


class _MaskRecorder:
    """Decides as another decider, and keeps the mask of each refinement that it chooses."""

    def __init__(self, inner: Decider, engine: Engine, masks: dict[tuple[EpisodeRequest, int], Mask]) -> None:
        self._inner = inner
        self._engine = engine
        self._masks = masks

    def __call__(
        self, episodes: Sequence[Episode], observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        choices = self._inner(episodes, observations_BD, mask_BA)
        for episode, choice in zip(episodes, choices.tolist(), strict=True):
            action = self._engine.actions[choice]
            if isinstance(action, Refine):
                twin = episode.fork()  # the episode's own noise stays where it is
                action.apply(twin)
                assert twin.refinement is not None
                mask_HW = twin.refinement.mask_1HW[0].float().cpu().numpy()
                self._masks[episode.request, len(episode.decisions)] = (
                    (255 * mask_HW).round().astype(np.uint8)
                )
        return choices


@dataclass(frozen=True)
class _Recorded:
    """A policy whose refinements' masks are kept."""

    policy: PolicyMethod
    masks: dict[tuple[EpisodeRequest, int], Mask] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The policy's name."""
        return self.policy.name

    @property
    def key(self) -> str:
        """The policy's key: its images are the same."""
        return self.policy.key

    def open(self, bench: Bench) -> OpenMethod:
        """The policy, recorded."""
        opened = self.policy.open(bench)
        return replace(opened, decider=_MaskRecorder(opened.decider, opened.engine, self.masks))


def trace(bench: Bench, policy: PolicyMethod, rows: Sequence[ImageRow], slots: int) -> Traced:
    """Make these images again; at least one."""
    recorded = _Recorded(policy)
    wanted = tuple(EpisodeRequest(row.prompt, row.seed, row.tier, category=row.category) for row in rows)
    made = generate(bench, Job(recorded, wanted, slots, record_previews=True))
    traces = []
    for row, episode in zip(made.rows, made.episodes, strict=True):
        quality: list[float] = []
        if episode.preview_images:
            previews: Images = np.stack(episode.preview_images)
            quality = bench.judge(previews, [row.prompt] * len(previews)).tolist()
        nfe = [decision.nfe for decision in episode.decisions]
        traces.append(
            Trace(row.prompt, row.seed, row.tier, (*nfe, row.nfe), (*quality, row.quality), row.actions)
        )
    return Traced(made, tuple(traces), recorded.masks)


def write_traces(path: Path, traces: Sequence[Trace]) -> None:
    """Write traces as Parquet, whole or not at all."""
    records = [{name: getattr(one, name) for name in _SCHEMA.names} for one in traces]
    with written_aside(path) as aside:
        pq.write_table(pa.Table.from_pylist(records, schema=_SCHEMA), aside)


def read_traces(path: Path) -> list[Trace]:
    """Traces of a file that `write_traces` wrote; none where there is no file. UserError if it is damaged."""
    if not path.exists():
        return []
    try:
        records = pq.read_table(path, schema=_SCHEMA).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable file of traces; run the evaluation again") from error
    lists = ("nfe", "quality", "actions")
    return [Trace(**{**record, **{name: tuple(record[name]) for name in lists}}) for record in records]
