"""Composes the YAML groups beside this file and what the command line overrides into typed configuration.

Always true here: Hydra only chooses files (`backbone=shapes`); every value, from a file or from an override
(`ppo.lr=1e-4`), is checked against the dataclasses that stand beside the code they configure. The user's
mistakes are UserErrors of one line, raised before anything has started.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from actors.errors import UserError
from evaluation.config import EvaluationConfig
from learner.config import RunConfig
from learner.offline_config import OfflineConfig
from tune_configs.conversion import from_mapping, join, nearest, option_names, unknown_option

FOLDER = Path(__file__).resolve().parent
_EVALUATION = "evaluation"
STUDIES = ("sweep", "ablation")
"""Folders whose files are many trainings: `tune_configs.sweep_files` reads them."""


class Settings(NamedTuple):
    """Everything one command is configured by."""

    run: RunConfig
    evaluation: EvaluationConfig

    def to_yaml(self) -> str:
        """The configuration in full, as `settings_from_yaml` reads it back."""
        return OmegaConf.to_yaml(
            OmegaConf.create({**self.run.as_dict(), _EVALUATION: asdict(self.evaluation)})
        )


class _Value(NamedTuple):
    """One option, and what it is set to."""

    option: str
    value: Any


def compose(overrides: Sequence[str] = (), backbone: Mapping[str, Any] | None = None) -> Settings:
    """The configuration that config.yaml chooses, changed by `overrides` from left to right.

    overrides: "GROUP=FILE" or "OPTION=VALUE", in Hydra's grammar, or "@FILE", a YAML file of options;
    backbone: options of the backbone that a policy was stored with, instead of config.yaml's.
    Raises UserError.
    """
    choices, values = _split(overrides)
    tree = _tree([override.input_line for override in choices])
    return _settings(tree if backbone is None else tree | {"backbone": backbone}, values)


def settings_from_yaml(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """The configuration that a run has stored, changed by `overrides`: options, or another evaluation file.

    A file without a section `evaluation` gets that of config.yaml. Raises UserError.
    """
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give a run that `addiffusion train` has made") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable configuration ({_first_line(error)})") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path}: not a configuration; give a run that `addiffusion train` has made")
    return settings_from_stored(stored, str(path), overrides)


def settings_from_stored(stored: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Settings:
    """The same, of a configuration that has been read already; source: where, for error messages."""
    choices, values = _split(overrides)
    for override in choices:
        if override.key_or_group != _EVALUATION:
            raise UserError(
                f"{override.input_line}: a run that exists keeps its files; give single options, "
                f"for example ppo.iterations=100, or another evaluation="
            )
    tree = dict(stored)
    if _EVALUATION not in tree or choices:
        tree[_EVALUATION] = _tree([override.input_line for override in choices])[_EVALUATION]
    try:
        return _settings(tree, values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def compose_offline(overrides: Sequence[str] = ()) -> OfflineConfig:
    """The configuration of `addiffusion offline`: that of offline.yaml, changed by `overrides`.

    overrides: "OPTION=VALUE", in Hydra's grammar, or "@FILE", a YAML file of options. Raises UserError.
    """
    tree = yaml.safe_load((FOLDER / "offline.yaml").read_text(encoding="utf-8"))
    config = from_mapping(OfflineConfig, changed(tree, overrides, option_names(OfflineConfig)))
    config.validate()
    return config


def changed(tree: Mapping[str, Any], overrides: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """A mapping with `overrides` applied, OPTION=VALUE or @FILE, of the options known. Raises UserError."""
    _, values = _split(overrides, known, {})
    return _with_values(dict(tree), values)


def groups() -> dict[str, list[str]]:
    """Each group that a training is composed of, with the names of its files, both sorted."""
    folders = sorted(folder for folder in FOLDER.iterdir() if any(folder.glob("*.yaml")))
    folders = [folder for folder in folders if folder.name not in STUDIES]
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def _split(
    overrides: Sequence[str], known: Sequence[str] | None = None, files: Mapping[str, list[str]] | None = None
) -> tuple[list[Override], list[_Value]]:
    """The choices of files, and the options with their values, each in the order given.

    known, files: the options and the groups with their files; those of a training run if None.
    """
    known = _options() if known is None else known
    files = groups() if files is None else files
    choices: list[Override] = []
    values: list[_Value] = []
    for text in overrides:
        if text.startswith("@"):
            values += _values_of_file(Path(text[1:]), known)
            continue
        override = _parse(text, known, files)
        if _is_choice(override, files):
            choices.append(override)
        else:
            values.append(_Value(override.key_or_group, override.value()))
    return choices, values


def _values_of_file(path: Path, known: Sequence[str]) -> list[_Value]:
    """All options of a YAML file that is given as @FILE, such as a calibration."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"@{path}: no such file; give a YAML file of options") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"@{path}: not a readable YAML file ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"@{path}: not a mapping; give a YAML file of options")
    try:
        return list(_flattened(content, known))
    except UserError as error:
        raise UserError(f"@{path}: {error}") from error


def _flattened(content: dict[Any, Any], known: Sequence[str], section: str = "") -> Iterator[_Value]:
    for name, value in content.items():
        option = join(section, str(name))
        _check_option(option, known)
        if isinstance(value, dict) and any(each.startswith(f"{option}.") for each in known):
            yield from _flattened(value, known, option)
        else:
            yield _Value(option, value)


def _parse(text: str, known: Sequence[str], files: Mapping[str, list[str]]) -> Override:
    """One override, checked for what needs no values: its form, its option's name, its group's file."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise UserError(
            f"'{text}': give OPTION=VALUE or GROUP=FILE, for example ppo.lr=1e-4 "
            f"(a value with special characters in quotes: prompts.source=\"'my file.txt'\")"
        ) from error
    if override.is_add() or override.is_delete() or override.is_sweep_override() or override.package:
        raise UserError(f"'{text}': give one value for one option, as OPTION=VALUE")
    option = override.key_or_group
    _check_option(option, known, files)
    if _is_choice(override, files):
        accepted = files[option]
        if override.value() not in accepted:
            raise UserError(
                f"{option}='{override.value()}': give one of {', '.join(accepted)}"
                f"{nearest(override.value(), accepted)}"
            )
    return override


def _check_option(option: str, known: Sequence[str], files: Iterable[str] = ()) -> None:
    if option in STUDIES:
        raise UserError(f"{option}: many trainings; `addiffusion tune {option}=FILE --dry-run` shows them")
    if option not in (accepted := [*files, *known]) and not _inside_mapping(option, known):
        raise UserError(unknown_option(option, accepted))


def _is_choice(override: Override, files: Mapping[str, list[str]]) -> bool:
    return override.key_or_group in files and not isinstance(override.value(), dict)


def _options() -> list[str]:
    return [*option_names(RunConfig), _EVALUATION, *option_names(EvaluationConfig, _EVALUATION)]


def _inside_mapping(option: str, known: Sequence[str]) -> bool:
    """Whether the option is inside a mapping ("reward.alpha.clip"); its value's check finds typos."""
    sections = {name.rpartition(".")[0] for name in known}
    parts = option.split(".")
    above = {".".join(parts[:length]) for length in range(1, len(parts))}
    return not above.isdisjoint(set(known) - sections)


def _tree(choices: Sequence[str | None]) -> dict[str, Any]:
    """What the chosen files say, with references to other options (${backbone.device}) still open."""
    return copy.deepcopy(_read_tree(tuple(str(line) for line in choices)))


@functools.lru_cache(maxsize=256)
def _read_tree(choices: tuple[str, ...]) -> dict[str, Any]:
    """Read once: a sweep composes a hundred trials of the same files, which takes Hydra .15 s each."""
    try:
        with initialize_config_dir(str(FOLDER), version_base="1.3"):
            tree = OmegaConf.to_container(hydra_compose("config", overrides=list(choices)))
    except HydraException as error:
        raise UserError(_first_line(error)) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _with_values(tree: dict[str, Any], values: Sequence[_Value]) -> dict[str, Any]:
    """The tree with these options set, and references resolved."""
    config = OmegaConf.create(tree)
    try:
        for option, value in values:
            OmegaConf.update(config, option, value, force_add=True)
        plain = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, HydraException) as error:
        raise UserError(_first_line(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _settings(tree: dict[str, Any], values: Sequence[_Value]) -> Settings:
    plain = _with_values(tree, values)
    evaluation_tree = plain.pop(_EVALUATION, {})
    # First, as the evaluation takes values from it: a wrong one is named where the user wrote it.
    run = from_mapping(RunConfig, plain)
    evaluation = from_mapping(EvaluationConfig, evaluation_tree, _EVALUATION)
    run.validate()
    return Settings(run, evaluation)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
