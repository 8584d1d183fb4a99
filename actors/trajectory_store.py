"""Training episodes as Parquet, one row a decision; column names are those of RLlib's offline readers.

Always true here: a file is written aside and renamed, so that a reader never sees half of one; every
file carries the schema's version; each row carries the version of the weights that acted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from actors.collector import Trajectory
from actors.errors import UserError
from actors.files import written_aside
from rewards_service.arithmetic import Components

SCHEMA_VERSION = "2"

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
        ("rewards", pyarrow.float32()),
        *((f"reward_{part}", pyarrow.float32()) for part in Components._fields),
        ("terminateds", pyarrow.bool_()),
        ("truncateds", pyarrow.bool_()),
        ("nfe", pyarrow.int32()),
        ("attempt", pyarrow.int32()),
        ("step_index", pyarrow.int32()),
        ("quality", pyarrow.float32()),
        ("weights_seq_no", pyarrow.int64()),
    ],
    metadata={"addiffusion_schema": SCHEMA_VERSION},
)


def episode_id(trajectory: Trajectory) -> str:
    """A name that is the same whenever the same episode is run: its random stream; a twin's says so."""
    name = "-".join(str(part) for part in trajectory.training.stream)
    return f"{name}-twin" if trajectory.is_twin else name


def to_table(trajectories: Sequence[Trajectory], weights_seq_no: int) -> pyarrow.Table:
    """Rows of all decisions; `quality` is that of the returned image, on every row of its episode.

    `rewards` is the sum of the columns `reward_...`.
    """
    columns: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
    for trajectory in trajectories:
        result = trajectory.result
        assert result is not None
        last = len(trajectory.actions) - 1
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
                "rewards": trajectory.rewards[t],
                "terminateds": t == last,
                "truncateds": False,
                "nfe": decision.nfe,
                "attempt": decision.attempt,
                "step_index": decision.step_index,
                "quality": trajectory.quality,
                "weights_seq_no": weights_seq_no,
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


def read(folder: Path) -> pyarrow.Table:
    """All episodes below a folder. UserError if there are none, or of another schema version."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise UserError(f"trajectories={folder}: no .parquet file there")
    tables = []
    for file in files:
        table = pyarrow.parquet.read_table(file)
        version = (table.schema.metadata or {}).get(b"addiffusion_schema", b"none").decode()
        if version != SCHEMA_VERSION:
            raise UserError(f"trajectories={file}: schema version {version}, expected {SCHEMA_VERSION}")
        tables.append(table)
    return pyarrow.concat_tables(tables)
