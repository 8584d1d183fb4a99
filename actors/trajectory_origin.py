"""Where stored trajectories come from: `origin.json` beside their Parquet files.

Always true here: the file is whole or not there; it holds all that somebody needs who learns from the
episodes without the run that made them: the policy's metadata, the run's configuration, and the input
normalisation of policy and critic. Trajectories of several folders are learnt from together only where they
are of one world: the same backbone, decision process, observation and discount, and where returns are
compared, the same reward.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.errors import UserError
from actors.files import written_aside
from actors.observations import ObservationConfig, ObservationSizes, Observer

ORIGIN_FILE = "origin.json"


@dataclass(frozen=True)
class Origin:
    """One folder's origin.

    metadata: what a policy of that run is saved with; config: the run's whole configuration; mean, std: of
    every input of the critic, the policy's first.
    """

    metadata: dict[str, Any]
    config: dict[str, Any]
    mean: list[float]
    std: list[float]

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions' names, in the order of the logits."""
        return tuple(self.metadata["actions"])

    @property
    def gamma(self) -> float:
        """The discount."""
        return float(self.config["reward"]["gamma_d"])

    def observer(self) -> Observer:
        """What takes the stored observations apart."""
        observation: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.metadata["observation"].items()
        }
        sizes = ObservationSizes(**self.metadata["sizes"])
        return Observer(ObservationConfig(**observation), sizes, self.actions)

    def write(self, folder: Path) -> None:
        """Write the file into a folder of trajectories."""
        with written_aside(folder / ORIGIN_FILE) as aside:
            aside.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


def read_origin(folder: Path) -> Origin:
    """The origin of a folder of trajectories. UserError if it has none, or a damaged one."""
    path = folder / ORIGIN_FILE
    if not path.is_file():
        raise UserError(
            f"trajectories={folder}: no {ORIGIN_FILE} there; give a folder that a run has written"
        )
    try:
        origin = Origin(**json.loads(path.read_text(encoding="utf-8")))
        widths = {len(origin.mean), len(origin.std), origin.observer().dim - len(origin.actions)}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"trajectories={path}: damaged ({type(error).__name__}: {error})") from error
    if len(widths) > 1:
        raise UserError(f"trajectories={path}: damaged (normalises another number of inputs than there are)")
    return origin


def common_origin(folders: Sequence[Path], *, same_reward: bool) -> Origin:
    """The origin of several folders together: the first one's. UserError where they are of two worlds.

    same_reward: whether one folder's returns will be compared with another's.
    """
    origins = [read_origin(folder) for folder in folders]
    expected = _world(origins[0], same_reward)
    for folder, origin in zip(folders, origins, strict=True):
        for name, value in _world(origin, same_reward).items():
            if value != expected.get(name):
                raise UserError(
                    f"trajectories={folder}: {name} is {value!r}, that of {folders[0]} is"
                    f" {expected.get(name)!r}; learn from them apart"
                )
    return origins[0]


def _world(origin: Origin, with_reward: bool) -> dict[str, Any]:
    """What has to agree, by the option's full name."""
    flat = {"backbone": origin.metadata["backbone"], "reward.gamma_d": origin.gamma}
    if with_reward:
        flat |= {f"reward.{name}": value for name, value in origin.config["reward"].items()}
    for section in ("engine", "observation", "sizes"):
        flat |= {f"{section}.{name}": value for name, value in origin.metadata[section].items()}
    return flat
