"""Finds and reads the files of tune_configs/sweep/ and tune_configs/ablation/.

Always true here: a file that is not there, an unknown option and an impossible value are one UserError each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from actors.errors import UserError
from tune_configs.conversion import field_types, from_mapping, nearest, option_names
from tune_configs.loading import FOLDER, STUDIES, changed
from tune_configs.sweep_config import Dimension, SweepConfig

PREFIX = "sweep."
"""Of options that are the sweep's own, on the command line: sweep.seeds=[0,1,2]."""
_SPACE = "space."
"""Of those, the ones that change one option's values: sweep.space.ppo.lr.grid=[1e-4]."""


class Sweep(NamedTuple):
    """A file that was read, with what the command line changed, and what its trials have in common.

    parts: the families of trials by name, in order; of a file without parts the file itself.
    """

    group: str
    file: str
    config: SweepConfig
    parts: dict[str, SweepConfig]

    @property
    def title(self) -> str:
        """As it was asked for."""
        return f"{self.group}={self.file}"


def sweep_files(group: str) -> list[str]:
    """The files of a group, by name."""
    assert group in STUDIES
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


def read_sweep(group: str, file: str, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep in a file; `overrides` change its own options, as "seeds=[0,1]". Raises UserError."""
    known = sweep_files(group)
    if file not in known:
        raise UserError(f"{group}='{file}': give one of {', '.join(known)}{nearest(file, known)}")
    return as_sweep(group, file, _content(group, file), overrides)


def as_sweep(group: str, file: str, content: Mapping[str, Any], overrides: Sequence[str] = ()) -> Sweep:
    """The sweep that a mapping describes, as a file holds it. Raises UserError."""
    config = _config(content, overrides)
    parts = {part: _config(_content(group, part), ()) for part in config.parts}
    return Sweep(group, file, config, parts or {file: config})


def sweep_to_dict(config: SweepConfig) -> dict[str, Any]:
    """Plain data, from which `as_sweep` makes the same sweep."""
    return _plain({name: value for name, value in asdict(config).items() if value is not None})


def _config(content: Mapping[str, Any], overrides: Sequence[str]) -> SweepConfig:
    wanted = [text.removeprefix(PREFIX) for text in overrides]
    whole = [text for text in wanted if not text.startswith(_SPACE)]
    values = changed(content, whole, option_names(SweepConfig))
    if isinstance(variants := values.get("variants"), Mapping):
        values["variants"] = _without(content, variants)
    for text in wanted:
        if text.startswith(_SPACE):
            values["space"] = _with_values(values.get("space") or {}, text)
    return from_mapping(SweepConfig, values, PREFIX.removesuffix("."))


def _with_values(space: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A space in which one option has other values, "space.OPTION.grid=[...]", or is not varied, "=null"."""
    given, _, value = text.partition("=")
    option, _, kind = given.removeprefix(_SPACE).rpartition(".")
    if option and kind in field_types(Dimension):
        new = changed({}, [f"space={{{option}: {{{kind}: {value}}}}}"], option_names(SweepConfig))
        return {**space, **new["space"]}
    option = given.removeprefix(_SPACE)
    if value != "null":
        kinds = ", ".join(field_types(Dimension))
        raise UserError(f"{PREFIX}{text}: give {PREFIX}{_SPACE}OPTION.KIND=[...], KIND one of {kinds}")
    if option not in space:
        raise UserError(
            f"{PREFIX}{text}: it is not varied; give one of {', '.join(space)}{nearest(option, space)}"
        )
    return {name: dimension for name, dimension in space.items() if name != option}


def _without(content: Mapping[str, Any], variants: Mapping[str, Any]) -> dict[str, Any]:
    """The variants less those that the command line set to null, which the file has to have."""
    of_file = content.get("variants") or {}
    for name, overrides in variants.items():
        if overrides is None and content.get("parts"):
            raise UserError(
                f"{PREFIX}variants.{name}=null: they belong to the parts {', '.join(content['parts'])}; "
                f"leave a part out with {PREFIX}parts=[...], and run it by itself without the variant"
            )
        if overrides is None and name not in of_file:
            raise UserError(
                f"{PREFIX}variants.{name}=null: there is none to leave out; "
                f"give one of {', '.join(of_file)}{nearest(name, list(of_file))}"
            )
    return {name: overrides for name, overrides in variants.items() if overrides is not None}


def _content(group: str, file: str) -> dict[str, Any]:
    path = Path(FOLDER / group / f"{file}.yaml")
    if not path.is_file():
        raise UserError(f"{group}: there is no file '{file}'; give one of {', '.join(sweep_files(group))}")
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
