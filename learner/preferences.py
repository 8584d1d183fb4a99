"""Preference pairs from stored episodes: in a state like this, was it better to stop or to go on?

Always true here: both halves of a pair are decisions that somebody took where stopping and going on were
both legal, one of each; the preferred one turned out better by more than the margin; beside each stands the
log-probability that the behaviour gave to it then, which is DPO's reference. A file of pairs is whole or
not there, and carries its schema's version.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from actors import trajectory_store
from actors.errors import UserError
from actors.files import written_aside
from actors.policy import ILLEGAL_LOGIT
from learner.offline_config import PairKind
from learner.offline_data import is_held_out, returns_to_go

PAIRS_VERSION = "1"
_VECTOR = pyarrow.list_(pyarrow.float32())
_HALF = (
    ("seed", pyarrow.int64()),
    ("obs", _VECTOR),
    ("stops", pyarrow.bool_()),
    ("logp", pyarrow.float32()),
    ("outcome", pyarrow.float32()),
)
PAIR_SCHEMA = pyarrow.schema(
    [
        ("prompt", pyarrow.string()),
        ("held_out", pyarrow.bool_()),
        ("kind", pyarrow.string()),
        *((f"{half}_{name}", kind) for half in ("chosen", "rejected") for name, kind in _HALF),
    ],
    metadata={"addiffusion_pairs": PAIRS_VERSION},
)
_COLUMNS = ("prompt", "seed", "actions", "action_dist_inputs", "rewards", "values", "attempt", "step_index")


@dataclass(frozen=True)
class Choices:
    """The stored decisions at which stopping and going on were both legal; N of them, in stored order.

    row_N: place among all stored rows; state_N: the same number for the same prompt, seed and
    past actions, which is the same state; place_N: the same number for the same prompt, attempt and step;
    logp_N: behaviour's log-probability of what was done, of the two; return_N: discounted, from there on;
    value_N: the critic's, NaN where there was none.
    """

    row_N: NDArray[np.int64]
    prompts: list[str]
    seed_N: NDArray[np.int64]
    state_N: NDArray[np.int64]
    place_N: NDArray[np.int64]
    stops_N: NDArray[np.bool_]
    logp_N: NDArray[np.float64]
    return_N: NDArray[np.float64]
    value_N: NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two of the choices, by their index; the outcomes are what was compared."""

    kind: PairKind
    chosen: int
    rejected: int
    chosen_outcome: float
    rejected_outcome: float


def stop_log_probs(logits_NA: NDArray[np.float32], stop: int) -> NDArray[np.float64]:
    """[N, 2]: log-probabilities of stopping and of going on, under a softmax over the logits."""
    logits_NA = logits_NA.astype(np.float64)
    total_N = np.logaddexp.reduce(logits_NA, axis=1)
    others_N = np.logaddexp.reduce(np.delete(logits_NA, stop, axis=1), axis=1)
    return np.stack([logits_NA[:, stop] - total_N, others_N - total_N], axis=1)


def read_choices(folders: Sequence[Path], stop: int, gamma: float) -> Choices:
    """All choices; observations stay on disk.

    stop: index of that action. Raises what `trajectory_store.files` raises.
    """
    columns: dict[str, list[NDArray[np.generic]]] = defaultdict(list)
    prompts: list[str] = []
    states: dict[object, int] = {}
    places: dict[object, int] = {}
    first = 0
    for rows in trajectory_store.stream(folders, _COLUMNS):
        logits_NA = trajectory_store.vectors(rows, "action_dist_inputs")
        legal_NA = logits_NA > ILLEGAL_LOGIT / 2
        choice_N = legal_NA[:, stop] & (legal_NA.sum(axis=1) > 1)
        actions_N = rows["actions"].to_numpy()
        stops_N = actions_N == stop
        logp_N2 = stop_log_probs(logits_NA, stop)
        named = rows["prompt"].to_pylist()
        seeds_N, attempts_N = rows["seed"].to_numpy(), rows["attempt"].to_numpy()
        steps_N = rows["step_index"].to_numpy()
        state_N = np.zeros(rows.num_rows, np.int64)
        start = 0
        for length in trajectory_store.episode_lengths(rows):
            node = states.setdefault((named[start], int(seeds_N[start])), len(states))
            for row in range(start, start + int(length)):
                state_N[row] = node
                node = states.setdefault((node, int(actions_N[row])), len(states))
            start += int(length)
        place_N = [
            places.setdefault(key, len(places))
            for key in zip(named, attempts_N.tolist(), steps_N.tolist(), strict=True)
        ]
        prompts += [prompt for prompt, chosen in zip(named, choice_N, strict=True) if chosen]
        for name, values in {
            "row_N": first + np.arange(rows.num_rows),
            "seed_N": seeds_N,
            "state_N": state_N,
            "place_N": np.array(place_N),
            "stops_N": stops_N,
            "logp_N": np.where(stops_N, logp_N2[:, 0], logp_N2[:, 1]),
            "return_N": returns_to_go(rows, gamma),
            "value_N": rows["values"].to_numpy().astype(np.float64),
        }.items():
            columns[name].append(values[choice_N])
        first += rows.num_rows
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Choices(prompts=prompts, **joined)  # type: ignore[arg-type]


def find_pairs(choices: Choices, *, kind: PairKind, margin: float, at_most: int, seed: int) -> list[Pair]:
    """Pairs of one that stopped and one that went on, `at_most` from one state or place, drawn by `seed`.

    In the same state the returns are compared. Elsewhere (`kind` "prompt": same prompt, attempt and step,
    other noise) states differ in what can still be had, so that advantages over the critic's values are.
    """
    advantage_N = choices.return_N - choices.value_N
    pairs: list[Pair] = []
    generator = np.random.default_rng([seed, 5])
    for name, key_N, outcome_N in (
        ("state", choices.state_N, choices.return_N),
        ("prompt", choices.place_N, advantage_N),
    ):
        if name == "prompt" and kind == "state":
            break
        for members in _groups(key_N):
            stopped = [index for index in members if choices.stops_N[index]]
            went_on = [index for index in members if not choices.stops_N[index]]
            found = []
            for one in stopped:
                for other in went_on:
                    if name == "prompt" and choices.seed_N[one] == choices.seed_N[other]:
                        continue
                    difference = outcome_N[one] - outcome_N[other]
                    if not abs(difference) > margin:  # NaN, where there was no critic, is no preference
                        continue
                    better, worse = (one, other) if difference > 0 else (other, one)
                    found.append(
                        Pair(
                            "state" if name == "state" else "prompt",
                            better,
                            worse,
                            float(outcome_N[better]),
                            float(outcome_N[worse]),
                        )
                    )
            if len(found) > at_most:
                found = [found[index] for index in generator.choice(len(found), at_most, replace=False)]
            pairs += found
    return pairs


def _groups(key_N: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Indices of each key's members, keys and members in order."""
    order = np.argsort(key_N, kind="stable")
    cuts = np.flatnonzero(np.diff(key_N[order])) + 1
    yield from np.split(order, cuts)


def write_pairs(
    path: Path, folders: Sequence[Path], choices: Choices, pairs: Sequence[Pair], held_out: float
) -> None:
    """Write the pairs with their observations, which are read again for it; held_out: share of the prompts.

    Raises UserError where there is no pair.
    """
    if not pairs:
        raise UserError(
            "trajectories hold no pair, no stop where another episode went on and fared otherwise; give more"
            " episodes of the same prompts and seeds, dpo.pairs=prompt, or a lower dpo.margin"
        )
    used = {int(choices.row_N[index]) for pair in pairs for index in (pair.chosen, pair.rejected)}
    seen: dict[int, NDArray[np.float32]] = {}
    first = 0
    for rows in trajectory_store.stream(folders, ("obs",)):
        wanted = sorted(row for row in used if first <= row < first + rows.num_rows)
        if wanted:
            observations_ND = trajectory_store.vectors(rows, "obs")
            seen |= {row: observations_ND[row - first] for row in wanted}
        first += rows.num_rows
    columns: dict[str, list[object]] = {
        "prompt": [choices.prompts[pair.chosen] for pair in pairs],
        "held_out": [is_held_out(choices.prompts[pair.chosen], held_out) for pair in pairs],
        "kind": [pair.kind for pair in pairs],
    }
    for half, indices, outcomes in (
        ("chosen", [pair.chosen for pair in pairs], [pair.chosen_outcome for pair in pairs]),
        ("rejected", [pair.rejected for pair in pairs], [pair.rejected_outcome for pair in pairs]),
    ):
        columns |= {
            f"{half}_seed": choices.seed_N[indices].tolist(),
            f"{half}_obs": [seen[int(choices.row_N[index])] for index in indices],
            f"{half}_stops": choices.stops_N[indices].tolist(),
            f"{half}_logp": choices.logp_N[indices].tolist(),
            f"{half}_outcome": list(outcomes),
        }
    with written_aside(path) as aside:
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=PAIR_SCHEMA), aside, compression="zstd")


def read_pairs(path: Path) -> pyarrow.Table:
    """A file of pairs. UserError if it is damaged or of another schema version."""
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"pairs={path}: cannot be read ({type(error).__name__}); make it again") from error
    version = (table.schema.metadata or {}).get(b"addiffusion_pairs", b"none").decode()
    if version != PAIRS_VERSION:
        raise UserError(f"pairs={path}: schema version {version}, expected {PAIRS_VERSION}")
    return table
