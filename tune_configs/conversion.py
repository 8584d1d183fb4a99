"""Turns plain mappings, as YAML gives them, into the typed dataclasses that the code is configured by.

Always true here: nothing is ignored and nothing is guessed. An unknown key, a value of the wrong type and a
value that the dataclass refuses are each one UserError of one line, which names the option in full, the
value, and what is accepted. The dataclass is the schema; there is no second description of it.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from actors.errors import UserError

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """An instance of the dataclass `cls` with `values`; what is not given keeps its default.

    path: where the mapping stands in the whole configuration ("ppo"), for error messages.
    Raises UserError as this file's docstring says.
    """
    hints = field_types(cls)
    arguments = {}
    for key, value in values.items():
        option = join(path, str(key))
        if key not in hints:
            raise UserError(unknown_option(option, [join(path, name) for name in hints]))
        arguments[key] = _convert(hints[key], value, option)
    missing = [field.name for field in fields(cls) if _required(field) and field.name not in arguments]  # type: ignore[arg-type]
    if missing:
        raise UserError(f"{join(path, missing[0])} is missing: give {describe(hints[missing[0]])}")
    try:
        return cls(**arguments)
    except ValueError as error:  # a class that does not know its section names its field alone
        message = str(error)
        first_word = re.match(r"\w*", message)
        own_field = first_word is not None and first_word.group() in hints
        raise UserError(join(path, message) if own_field else message) from error


def field_types(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass, in order of declaration."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls) if field.init}


def option_names(cls: type, path: str = "") -> list[str]:
    """All options of a dataclass and of the dataclasses in it, in full ("ppo.lr")."""
    names = []
    for name, annotation in field_types(cls).items():
        names.append(join(path, name))
        if (section := _section(annotation)) is not None:
            names += option_names(section, join(path, name))
    return names


def unknown_option(option: str, known: Sequence[str]) -> str:
    """One line for an option that does not exist: the nearest one that does, or else the list.

    An option that exists in another section ("solver.num_steps") leads there ("engine.num_steps"). The
    list is that of the option's own section where there is such a section, else of the outermost names.
    """
    section, _, leaf = option.rpartition(".")
    elsewhere = [name for name in known if name.endswith(f".{option}")]
    elsewhere = elsewhere or [name for name in known if name.rpartition(".")[2] == leaf]
    own = [name for name in known if name.startswith(f"{section}.")]
    near = elsewhere or difflib.get_close_matches(option, own or known, n=1, cutoff=0.7)
    if near:
        return f"unknown option '{option}'; did you mean '{near[0]}'?"
    accepted = own or dict.fromkeys(name.partition(".")[0] for name in known)
    return f"unknown option '{option}': give one of {', '.join(accepted)}"


def join(path: str, name: str) -> str:
    """The full name of option `name` in section `path`; the outermost section is ""."""
    return f"{path}.{name}" if path else name


def nearest(value: object, accepted: Iterable[object]) -> str:
    """A ready-made ", did you mean X?", or nothing where no accepted value is like the one given."""
    near = difflib.get_close_matches(str(value), [str(item) for item in accepted], n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def describe(annotation: Any) -> str:
    """What a type accepts, in the words of somebody who writes a configuration."""
    if annotation in _NAMES:
        return _NAMES[annotation]
    if is_dataclass(annotation):
        return f"a section with {', '.join(field_types(annotation))}"  # type: ignore[arg-type]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(item) for item in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(item) for item in arguments)
    if origin in (tuple, list, Sequence):
        if origin is tuple and Ellipsis not in arguments:
            return f"a list of {len(arguments)}: {', '.join(describe(item) for item in arguments)}"
        return f"a list, each {describe(arguments[0])}"
    assert origin in (dict, Mapping), f"no configuration field may have type {annotation}"
    return f"a mapping from names to {describe(arguments[1])}"


_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    type(None): "null",
}


def _convert(annotation: Any, value: Any, option: str) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if is_dataclass(annotation):
        if isinstance(value, Mapping):
            return from_mapping(annotation, value, option)  # type: ignore[arg-type]
    elif origin is Literal:
        if any(value == item and type(value) is type(item) for item in arguments):
            return value
        raise UserError(f"{_refused(annotation, value, option)}{nearest(value, arguments)}")
    elif origin in (Union, types.UnionType):
        return _convert_union(arguments, annotation, value, option)
    elif origin in (tuple, list, Sequence):
        if isinstance(value, (list, tuple)):
            return _convert_sequence(origin, arguments, annotation, value, option)
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping):
            return {
                str(key): _convert(arguments[1], item, join(option, str(key))) for key, item in value.items()
            }
    elif annotation is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif annotation is Path:
        if isinstance(value, (str, Path)):
            return Path(value)
    elif type(value) is annotation:
        return value
    raise UserError(_refused(annotation, value, option))


def _convert_union(arguments: tuple[Any, ...], annotation: Any, value: Any, option: str) -> Any:
    """The first alternative that takes the value; a mapping goes to the section among them."""
    alternatives = [item for item in arguments if item is not type(None)]
    if value is None and len(alternatives) < len(arguments):
        return None
    section = _section(annotation)
    if section is not None and (isinstance(value, Mapping) or len(alternatives) == 1):
        return _convert(section, value, option)
    for item in alternatives:
        try:
            return _convert(item, value, option)
        except UserError:
            continue
    raise UserError(_refused(annotation, value, option))


def _section(annotation: Any) -> type | None:
    """The dataclass that a type is, or that it allows besides others; None if it has none."""
    alternatives = (
        get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    )
    return next((item for item in alternatives if is_dataclass(item)), None)  # type: ignore[return-value]


def _convert_sequence(
    origin: Any, arguments: tuple[Any, ...], annotation: Any, value: Sequence[Any], option: str
) -> Any:
    item_types = arguments
    if origin is not tuple or Ellipsis in arguments:
        item_types = (arguments[0],) * len(value)
    if len(item_types) != len(value):
        raise UserError(_refused(annotation, list(value), option))
    items = [
        _convert(item_type, item, f"{option}[{index}]")
        for index, (item_type, item) in enumerate(zip(item_types, value, strict=True))
    ]
    return items if origin is list else tuple(items)


def _refused(annotation: Any, value: Any, option: str) -> str:
    shown = f"'{value}'" if isinstance(value, str) else "null" if value is None else str(value)
    return f"{option}={shown}: give {describe(annotation)}"


def _required(field: Field[Any]) -> bool:
    return field.init and field.default is MISSING and field.default_factory is MISSING
