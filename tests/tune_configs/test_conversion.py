from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from actors.errors import UserError
from tune_configs.conversion import from_mapping, option_names, unknown_option


@dataclass(frozen=True)
class Optimiser:
    name: Literal["adam", "sgd"] = "adam"
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr}: give a number above 0")


@dataclass(frozen=True)
class Experiment:
    title: str
    steps: int = 1
    dry: bool = False
    limit: int | None = None
    folder: Path = Path()
    widths: tuple[int, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    optimiser: Optimiser = field(default_factory=Optimiser)


def test_every_kind_of_value_arrives_typed() -> None:
    values = {
        "title": "all",
        "steps": 3,
        "dry": True,
        "limit": None,
        "folder": "runs",
        "widths": [512, 256],
        "weights": {"clip": 1},
        "optimiser": {"name": "sgd", "lr": 1, "betas": [0.5, 0.9]},
    }
    expected = Experiment(
        "all", 3, True, None, Path("runs"), (512, 256), {"clip": 1.0}, Optimiser("sgd", 1.0, (0.5, 0.9))
    )
    assert from_mapping(Experiment, values) == expected


def test_what_is_not_given_keeps_its_default() -> None:
    assert from_mapping(Experiment, {"title": "short"}) == Experiment("short")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "many"}, "steps='many': give a whole number"),
        ({"steps": 1.5}, "steps=1.5: give a whole number"),
        ({"steps": True}, "steps=True: give a whole number"),
        ({"dry": 1}, "dry=1: give true or false"),
        ({"limit": "none"}, "limit='none': give a whole number or null"),
        ({"title": None}, "title=null: give text"),
        ({"widths": 3}, "widths=3: give a list, each a whole number"),
        ({"widths": [1, "a"]}, "widths[1]='a': give a whole number"),
        ({"weights": {"clip": "x"}}, "weights.clip='x': give a number"),
        ({"optimiser": 3}, "optimiser=3: give a section with name, lr, betas"),
        ({"optimiser": {"lr": float("nan")}}, "optimiser.lr=nan: give a number"),
        ({"optimiser": {"lr": -1.0}}, "optimiser.lr=-1.0: give a number above 0"),
        ({"optimiser": {"betas": [1]}}, "optimiser.betas=[1]: give a list of 2: a number, a number"),
        ({"optimiser": {"name": "sdg"}}, "optimiser.name='sdg': give one of adam, sgd; did you mean 'sgd'?"),
        ({"optimiser": {"lrr": 1}}, "unknown option 'optimiser.lrr'; did you mean 'optimiser.lr'?"),
    ],
)
def test_a_wrong_value_is_one_line_with_option_value_and_what_is_accepted(
    values: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(Experiment, {"title": "wrong", **values})
    assert str(caught.value) == message


def test_a_required_option_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="title is missing: give text"):
        from_mapping(Experiment, {})


def test_an_unknown_option_leads_to_the_same_name_in_another_section() -> None:
    known = option_names(Experiment)
    assert unknown_option("solver.lr", known) == "unknown option 'solver.lr'; did you mean 'optimiser.lr'?"


def test_an_unknown_option_without_a_section_lists_the_outermost_names() -> None:
    known = option_names(Experiment)
    listed = unknown_option("zzz", known).partition("give one of ")[2].split(", ")
    assert sorted(listed) == sorted(name for name in known if "." not in name)
    assert unknown_option("zzz.lrr", known) == unknown_option("zzz", known).replace("zzz", "zzz.lrr")


def test_an_unknown_option_of_a_section_lists_that_section() -> None:
    message = unknown_option("optimiser.zzzzzz", option_names(Experiment))
    assert "optimiser.lr" in message
    assert "title" not in message


@dataclass(frozen=True)
class Judge:
    source: Optimiser | str | None = None


def test_an_option_may_be_a_section_a_name_or_null() -> None:
    for given, expected in (
        ({"lr": 1}, Optimiser(lr=1.0)),
        ({}, Optimiser()),
        ("folder", "folder"),
        (None, None),
    ):
        assert from_mapping(Judge, {"source": given}) == Judge(expected)  # type: ignore[arg-type]
    for wrong, message in (
        ({"lr": "x"}, "source.lr='x': give a number"),
        ({"lrr": 1}, "unknown option 'source.lrr'; did you mean 'source.lr'?"),
        (3, "source=3: give a section with name, lr, betas or text or null"),
    ):
        with pytest.raises(UserError) as caught:
            from_mapping(Judge, {"source": wrong})
        assert str(caught.value) == message
    assert "source.lr" in option_names(Judge)
