"""The dashboard: Grafana's import format, and nothing in it that no replica reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import cluster
from rewards_service.metrics import TAGS, ReplicaMetrics

DASHBOARD = json.loads((Path(cluster.__file__).parent / "grafana" / "rewards.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", text))


def test_it_can_be_imported() -> None:
    assert DASHBOARD["title"]
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert "id" not in DASHBOARD  # an id is of one Grafana; others refuse or overwrite it
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = {name for name in re.findall(r"\$\{?(\w+)", json.dumps(panels)) if name != "__all"}
    assert used == variables
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] == "timeseries"
        assert panel["title"]
        assert [target["refId"] for target in panel["targets"]] == ["A", "B"][: len(panel["targets"])]
        place = panel["gridPos"]
        taken = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert not cells & taken
        assert max(column for column, _ in taken) < 24
        cells |= taken


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_its_queries_are_of_metrics_that_replicas_report(expression: str, ray_session: None) -> None:
    exported = ReplicaMetrics("service", "scorer", 0).exported_names()
    assert names_in(expression)
    assert names_in(expression) <= exported
    assert expression.count("(") == expression.count(")")
    labels = set(re.findall(r"(\w+)=~", expression))
    assert labels <= set(TAGS)


def test_every_metric_has_a_panel(ray_session: None) -> None:
    shown = {name for expression in EXPRESSIONS for name in names_in(expression)}
    shown |= {name for variable in DASHBOARD["templating"]["list"] for name in names_in(variable["query"])}
    counts = {name.replace("_bucket", "_count") for name in shown}  # a quantile needs no count beside it
    assert ReplicaMetrics("service", "scorer", 0).exported_names() <= shown | counts
