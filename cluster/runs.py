"""Finds runs and policies by the names that users give them.

Always true here: nothing is created, and a name that leads nowhere is one line that says what would.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.backbones.config import BackboneConfig
from actors.errors import UserError
from actors.policy import WEIGHTS_FILE, load_policy
from rewards_service.scorers_config import ScorersConfig
from tune_configs.conversion import nearest
from tune_configs.loading import Settings, compose, settings_from_stored, settings_from_yaml

if TYPE_CHECKING:  # MLflow takes seconds to import
    from learner.champions import Champions, Version

CONFIG = "config.yaml"


def existing_parent(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def check_writable(option: str, place: Path, *, folder: bool = False) -> None:
    """UserError for a place where no file, or no folder, can be made, or written to if it is there."""
    there = existing_parent(place)
    fits = there.is_dir() if folder or there != place.absolute() else there.is_file()
    if not fits or not os.access(there, os.W_OK):
        kind = "folder" if folder else "file"
        raise UserError(f"{option}={place}: give a {kind} that can be written, or that is not there yet")


def find_run(name: str, runs_dir: Path) -> Path:
    """The folder of a run, by its name or its path. Raises UserError if it is none."""
    for folder in (runs_dir / name, Path(name)):
        if (folder / CONFIG).is_file():
            return folder
    known = [run.name for run in runs(runs_dir)]
    listed = (
        f"give one of {', '.join(known)}" if known else "there is none yet; `addiffusion train` makes one"
    )
    raise UserError(f"run '{name}': not found in {runs_dir}; {listed}{nearest(name, known)}")


def newest_policy(runs_dir: Path) -> Path:
    """The policy of the run that was trained last. Raises UserError if there is none."""
    policies = [run / "policy" for run in trained_runs(runs_dir)]
    if not policies:
        raise UserError(f"no trained policy in {runs_dir}; run `addiffusion train`, or name one with --model")
    return max(policies, key=lambda policy: (policy / WEIGHTS_FILE).stat().st_mtime)


def runs(runs_dir: Path) -> list[Path]:
    """All runs of a folder, by name."""
    return sorted(file.parent for file in runs_dir.glob(f"*/{CONFIG}"))


def trained_runs(runs_dir: Path) -> list[Path]:
    """The runs that have a policy already."""
    return [run for run in runs(runs_dir) if (run / "policy" / WEIGHTS_FILE).is_file()]


def free_name(name: str, runs_dir: Path) -> str:
    """`name`, or with the first number that makes it new: run, run-2, run-3."""
    taken = {run.name for run in runs(runs_dir)}
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return next(candidate for candidate in (name, *numbered) if candidate not in taken)


def find_policy(name: str, runs_dir: Path) -> Path:
    """The folder of a policy, from a run, from a policy's own folder, or from the registry (name@alias).

    Raises UserError if there is none by that name.
    """
    if (policy_dir := run_policy(name, runs_dir)) is not None:
        return policy_dir
    if "@" not in name and "/" not in name:
        known = [run.name for run in trained_runs(runs_dir)]
        listed = f"the runs {', '.join(known)}, " if known else ""
        raise UserError(
            f"model '{name}': not found; give {listed}a policy's folder, or a registered model as name@alias"
            f"{nearest(name, known)}"
        )
    from learner import registry

    return registry.policy_folder(name, uri=registry.tracking_uri(runs_dir))


def run_policy(name: str, runs_dir: Path) -> Path | None:
    """The folder of a policy, from a run or from its own folder; None if there is none by that name."""
    for folder in (runs_dir / name, Path(name)):
        for candidate in (folder / "policy", folder):
            if (candidate / WEIGHTS_FILE).is_file():
                return candidate
    return None


def settings_of(policy_dir: Path, overrides: Sequence[str] = ()) -> Settings:
    """The settings that a policy in a folder was trained with.

    Where its run is not at hand they are those of config.yaml, on the backbone that the policy itself names.
    """
    stored = policy_dir.parent / CONFIG
    if stored.is_file():
        return settings_from_yaml(stored, overrides)
    backbone = load_policy(policy_dir)[1].get("backbone_config")
    if backbone is None:  # a policy of an earlier version
        return compose(overrides)
    return compose(overrides, backbone)


def settings_by_name(name: str, runs_dir: Path, overrides: Sequence[str] = ()) -> Settings:
    """`settings_of` what `find_policy` finds; of a registered model those that are registered with it."""
    if (policy_dir := run_policy(name, runs_dir)) is not None:
        return settings_of(policy_dir, overrides)
    from learner import registry

    return registered_settings(name, registry.tracking_uri(runs_dir), overrides)


def registered_scorers(
    champions: Champions, version: Version, backbone: BackboneConfig
) -> ScorersConfig | str | None:
    """The reward models that a version was trained with; None, the embedded world's, for its own policies.

    Raises UserError for a policy on another backbone that was registered without the options of its run.
    """
    config = champions.config(version)
    if config is None and backbone.name == "shapes":
        return None
    return _settings_of_version(version, config).evaluation.scorers


def registered_settings(name: str, uri: str, overrides: Sequence[str] = ()) -> Settings:
    """The settings that a registered model (name@alias, name/version) was trained with.

    Raises UserError for a version that was registered without them.
    """
    from learner.champions import Champions

    champions = Champions(uri)
    version = champions.find(name)
    return _settings_of_version(version, champions.config(version), overrides)


def _settings_of_version(
    version: Version, config: Mapping[str, Any] | None, overrides: Sequence[str] = ()
) -> Settings:
    if config is None or "backbone" not in config:
        raise UserError(
            f"model '{version.label}': was registered without the options of its run, so that device and "
            "reward models are not known; give the run's own folder"
        )
    return settings_from_stored(config, f"model '{version.label}'", overrides)
