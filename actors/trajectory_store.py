"""Training episodes as Parquet, one row a decision; column names are those of RLlib's offline readers.

Always true here: a file is written aside and renamed, so that a reader never sees half of one; every
file carries the schema's version and whole episodes, their rows in order; each row carries the version of
the weights that acted. What each column means stands in docs/trajectories.md.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
from numpy.typing import NDArray
from PIL import Image

from actors.contracts import Images
from actors.errors import UserError
from actors.files import written_aside
from actors.trajectory import Trajectory
from rewards_service.arithmetic import Components

SCHEMA_VERSION = "3"

_VECTOR = pyarrow.list_(pyarrow.float32())
SCHEMA = pyarrow.schema(
    [
        ("eps_id", pyarrow.string()),
        ("t", pyarrow.int32()),
        ("prompt", pyarrow.string()),
        ("tier", pyarrow.string()),
        ("seed", pyarrow.int64()),
        ("obs", _VECTOR),
        ("actions", pyarrow.int32()),
        ("action", pyarrow.string()),
        ("action_logp", pyarrow.float32()),
        ("action_dist_inputs", _VECTOR),
        ("values", pyarrow.float32()),
        ("rewards", pyarrow.float32()),
        *((f"reward_{part}", pyarrow.float32()) for part in Components._fields),
        ("terminateds", pyarrow.bool_()),
        ("truncateds", pyarrow.bool_()),
        ("attempt", pyarrow.int32()),
        ("step_index", pyarrow.int32()),
        ("nfe", pyarrow.int32()),
        ("seconds", pyarrow.float32()),
        ("quality", pyarrow.float32()),
        ("episode_nfe", pyarrow.int32()),
        ("episode_cost", pyarrow.float32()),
        ("episode_seconds", pyarrow.float32()),
        ("weights_seq_no", pyarrow.int64()),
        ("preview", pyarrow.binary()),
    ],
    metadata={"addiffusion_schema": SCHEMA_VERSION},
)
#: Rows that are held at a time while a file is streamed; an episode may be cut by it, and is put together.
_BATCH_ROWS = 4096


def episode_id(trajectory: Trajectory) -> str:
    """A name that is the same whenever the same episode is run: its random stream; a twin's says so."""
    name = "-".join(str(part) for part in trajectory.training.stream)
    return f"{name}-twin" if trajectory.is_twin else name


def file_name(folder: Path, round_: int, runner: int) -> Path:
    """Where an env runner's episodes of a round go; a round is an iteration, unless runners count."""
    return folder / f"iteration-{round_:06d}-runner-{runner:03d}.parquet"


def discard_from(folder: Path, next_round: Callable[[int], int]) -> None:
    """Remove what an interrupted run had gathered in rounds that are now done again.

    next_round: an env runner's index in, the round that it does next out.
    """
    for file in folder.glob("iteration-*-runner-*.parquet"):
        _, round_, _, runner = file.stem.split("-")
        if int(round_) >= next_round(int(runner)):
            file.unlink()


def to_table(trajectories: Sequence[Trajectory], weights_seq_no: int) -> pyarrow.Table:
    """Rows of all decisions; `quality` and `episode_...` are on every row of their episode.

    `rewards` is the sum of the columns `reward_...`; `values` is null where there was no critic.
    """
    columns: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
    for trajectory in trajectories:
        result = trajectory.result
        assert result is not None
        last = len(trajectory.actions) - 1
        assert len(trajectory.values) in (0, last + 1), "values of some decisions only"
        for t, decision in enumerate(result.decisions):
            row = {
                "eps_id": episode_id(trajectory),
                "t": t,
                "prompt": result.request.prompt,
                "tier": result.request.tier,
                "seed": result.request.seed,
                "obs": trajectory.observations[t],
                "actions": trajectory.actions[t],
                "action": decision.action,
                "action_logp": trajectory.log_probs[t],
                "action_dist_inputs": trajectory.logits[t],
                "values": trajectory.values[t] if trajectory.values else None,
                "rewards": trajectory.rewards[t],
                "terminateds": t == last,
                "truncateds": False,
                "attempt": decision.attempt,
                "step_index": decision.step_index,
                "nfe": decision.nfe,
                "seconds": trajectory.seconds_spent[t],
                "quality": trajectory.quality,
                "episode_nfe": result.nfe,
                "episode_cost": result.cost,
                "episode_seconds": trajectory.seconds,
                "weights_seq_no": weights_seq_no,
                "preview": _png(trajectory.previews[t]) if trajectory.previews else None,
            }
            row |= {f"reward_{part}": value for part, value in trajectory.parts[t]._asdict().items()}
            for name, value in row.items():
                columns[name].append(value)
    return pyarrow.table(columns, schema=SCHEMA)


def write(trajectories: Sequence[Trajectory], path: Path, weights_seq_no: int) -> None:
    """Write one file of episodes; no file when there are none."""
    if not trajectories:
        return
    with written_aside(path) as aside:
        pyarrow.parquet.write_table(to_table(trajectories, weights_seq_no), aside, compression="zstd")


def files(folders: Sequence[Path]) -> list[Path]:
    """All files of some folders, each folder's in order, each looked at for its version.

    Raises UserError for a folder without any, for a file that is damaged or of another schema version.
    """
    found = []
    for folder in folders:
        inside = sorted(folder.glob("*.parquet"))
        if not inside:
            raise UserError(f"trajectories={folder}: no .parquet file there")
        for file in inside:
            _check_version(file)
        found += inside
    return found


def stream(folders: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[pyarrow.Table]:
    """Some thousand rows at a time, whole episodes only, in the order of `files`; all columns or some.

    Raises what `files` raises, and UserError for a file that ends within an episode.
    """
    for file in files(folders):
        yield from stream_file(file, columns)


def stream_file(file: Path, columns: Sequence[str] | None = None) -> Iterator[pyarrow.Table]:
    """The part of `stream` that comes from one file."""
    wanted = list(dict.fromkeys(["terminateds", *(SCHEMA.names if columns is None else columns)]))
    batches = pyarrow.dataset.dataset(file, schema=SCHEMA, format="parquet").to_batches(
        columns=wanted, batch_size=_BATCH_ROWS, batch_readahead=1, fragment_readahead=1
    )
    kept = pyarrow.schema([SCHEMA.field(name) for name in wanted])
    rest = kept.empty_table()
    for batch in batches:
        rows = pyarrow.concat_tables([rest, pyarrow.Table.from_batches([batch], schema=kept)])
        ends = np.flatnonzero(rows["terminateds"].to_numpy())
        whole = int(ends[-1]) + 1 if len(ends) else 0
        if whole:
            yield rows.slice(0, whole)
        rest = rows.slice(whole)
    if rest.num_rows:
        raise UserError(f"trajectories={file}: ends within an episode; delete it, or make it again")


def read(folder: Path) -> pyarrow.Table:
    """All episodes of a folder at once, for folders that fit into memory. Raises what `stream` raises."""
    return pyarrow.concat_tables(stream([folder], SCHEMA.names))


def vectors(rows: pyarrow.Table, column: str) -> NDArray[np.float32]:
    """A list column as an array [N, D]; its lists must be equally long."""
    flat: NDArray[np.float32] = rows[column].combine_chunks().flatten().to_numpy()
    return flat.reshape(rows.num_rows, len(flat) // max(rows.num_rows, 1))


def episode_lengths(rows: pyarrow.Table) -> NDArray[np.int64]:
    """How many rows each of the whole episodes has."""
    ends: NDArray[np.int64] = np.flatnonzero(rows["terminateds"].to_numpy()) + 1
    return np.diff(ends, prepend=0)


def _check_version(file: Path) -> None:
    try:
        metadata = pyarrow.parquet.read_schema(file).metadata or {}
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"trajectories={file}: damaged, it is not a Parquet file; delete it") from error
    version = metadata.get(b"addiffusion_schema", b"none").decode()
    if version != SCHEMA_VERSION:
        raise UserError(f"trajectories={file}: schema version {version}, expected {SCHEMA_VERSION}")


def _png(image_HWC: Images) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="PNG")
    return buffer.getvalue()
