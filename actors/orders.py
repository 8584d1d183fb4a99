"""What the driver tells an env runner: the fixed settings of a run, and the orders of a round.

Always true here: which requests a round has follows from the seed and the round's number alone, and which of
them a runner takes from its place among the others, so that a replaced runner goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.contracts import Backbone, EpisodeRequest
from actors.engine import EngineConfig
from actors.kept import Kept
from actors.ledger import Target
from actors.observations import Observer
from rewards_service.arithmetic import RewardConfig
from rewards_service.contracts import RewardClient

#: Their names in a state that RLlib hands on.
ORDERS = "orders"
ROUNDS = "rounds"
_FOCUS_PASSES = 1 << 32
"""Passes from here on are of one request that the curriculum drew."""


@dataclass(frozen=True)
class RunnerSettings:
    """What never changes in a run; it travels to every env runner in RLlib's `env_config`.

    make_backbone, make_client: called in the env runner's process; requests: the fixed set that is
    trained on; episodes_per_request: how often each is run in a row; branch_share: of the episodes, so many
    fork at a decision drawn among the schedule's (see `actors.branching`); trajectories: folder for Parquet
    files, None writes none; trajectory_previews: with an image of every decision in them; memo_mib: for
    denoiser calls that were made before, and a quarter of it for scores (0: everything is computed again);
    kept: of earlier runs in this process, instead of a backbone and memos of its own.
    """

    make_backbone: Callable[[], Backbone]
    make_client: Callable[[], RewardClient]
    engine: EngineConfig
    observer: Observer
    requests: tuple[EpisodeRequest, ...]
    episodes_per_iteration: int
    slots: int
    groups: int
    seed: int
    torch_threads: int = 1
    episodes_per_request: int = 1
    branch_share: float = 0.0
    trajectories: str | None = None
    trajectory_previews: bool = False
    memo_mib: float = 0.0
    kept: Kept | None = None


@dataclass(frozen=True)
class Orders:
    """What the driver tells the env runners: the iteration, and the calibrated reward.

    targets: what each request's episode is measured against, in the order of `RunnerSettings.requests`;
    focus: indices of requests that the curriculum draws more often; focus_share: of the iteration's
    episodes, so many are drawn from these alone; rounds: how many each env runner has done so far where they
    count them themselves, empty where the iteration is the round.
    """

    iteration: int
    reward: RewardConfig
    targets: tuple[Target, ...]
    focus: tuple[int, ...] = ()
    focus_share: float = 0.0
    rounds: tuple[int, ...] = ()


def iteration_requests(
    count: int,
    iteration: int,
    episodes: int,
    seed: int,
    share: tuple[int, int] = (0, 1),
    *,
    focus: Sequence[int] = (),
    focus_share: float = 0.0,
    repeats: int = 1,
) -> list[tuple[int, int]]:
    """(pass, index) of the requests that part `share[0]` of `share[1]` has to run in an iteration.

    Requests come in passes, each a permutation of all `count` of them that depends on the seed and the
    pass; iteration i takes the i-th `episodes` of that endless sequence. `focus_share` of them, drawn by
    seed and position, give way to one of `focus`, in a pass of its own. Each is taken `repeats` times in a
    row, in as many passes. A part gets requests that it had before, as far as all parts get equally many: it
    may remember them.
    """
    part, parts = share
    orders: dict[int, NDArray[np.int64]] = {}
    chosen = []
    for place in range(iteration * episodes, (iteration + 1) * episodes):
        position, repeat = divmod(place, repeats)
        draw = np.random.default_rng([seed, position, 2])
        if focus and draw.random() < focus_share:
            chosen.append((_FOCUS_PASSES + place, focus[int(draw.integers(len(focus)))]))
            continue
        round_, offset = divmod(position, count)
        if round_ not in orders:
            orders[round_] = np.random.default_rng([seed, round_]).permutation(count)
        chosen.append((round_ * repeats + repeat, int(orders[round_][offset])))
    return _spread(chosen, parts)[part]


def _spread(chosen: Sequence[tuple[int, int]], parts: int) -> list[list[tuple[int, int]]]:
    """Requests by index modulo the parts; what is beyond an equal share goes where there is room."""
    sizes = [len(range(part, len(chosen), parts)) for part in range(parts)]
    spread: list[list[tuple[int, int]]] = [[] for _ in range(parts)]
    left = []
    for pair in chosen:
        home = pair[1] % parts
        if len(spread[home]) < sizes[home]:
            spread[home].append(pair)
        else:
            left.append(pair)
    for part in range(parts):
        missing = sizes[part] - len(spread[part])
        spread[part] += left[:missing]
        left = left[missing:]
    return spread
