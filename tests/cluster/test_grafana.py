"""The dashboards: Grafana's import format, and nothing in them that nobody reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import cluster
from cluster.serving.telemetry import PREFIX, Telemetry
from rewards_service.metrics import TAGS, ReplicaMetrics

FOLDER = Path(cluster.__file__).parent / "grafana"
DASHBOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))
}
EXPRESSIONS = {
    name: [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for name, dashboard in DASHBOARDS.items()
}


def names_in(text: str) -> set[str]:
    return set(re.findall(rf"\b(?:ray|{PREFIX})_\w+", text))


def shown_by(name: str) -> set[str]:
    """All metrics that a dashboard asks for; a quantile needs no count beside it."""
    shown = {found for expression in EXPRESSIONS[name] for found in names_in(expression)}
    shown |= {
        found for variable in DASHBOARDS[name]["templating"]["list"] for found in names_in(variable["query"])
    }
    return shown | {found.replace("_bucket", "_count") for found in shown}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_it_can_be_imported(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["title"]
    assert dashboard["uid"] == f"addiffusion-{name}"
    assert isinstance(dashboard["schemaVersion"], int)
    assert "id" not in dashboard  # an id is of one Grafana; others refuse or overwrite it
    panels: list[dict[str, Any]] = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
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


@pytest.mark.parametrize("expression", EXPRESSIONS["rewards"])
def test_the_rewards_queries_are_of_metrics_that_replicas_report(expression: str, ray_session: None) -> None:
    exported = ReplicaMetrics("service", "scorer", 0).exported_names()
    assert names_in(expression)
    assert names_in(expression) <= exported
    assert expression.count("(") == expression.count(")")
    labels = set(re.findall(r"(\w+)=~", expression))
    assert labels <= set(TAGS)


def test_every_metric_of_the_rewards_has_a_panel(ray_session: None) -> None:
    assert ReplicaMetrics("service", "scorer", 0).exported_names() <= shown_by("rewards")


def test_the_endpoints_metrics_and_the_panels_are_the_same() -> None:
    """What Prometheus reads of /metrics, with the labels by which a panel groups."""
    families = text_string_to_metric_families(Telemetry().text().decode())
    samples = [sample for family in families for sample in family.samples]
    reported = {sample.name for sample in samples if not sample.name.endswith("_created")}
    totals = {name for name in reported if name.endswith("_sum")}  # a histogram's, which need no panel
    assert shown_by("serving") <= reported
    assert reported - totals <= shown_by("serving")
    labels = {label for sample in samples for label in sample.labels}
    for expression in EXPRESSIONS["serving"]:
        assert expression.count("(") == expression.count(")")
        for grouped in re.findall(r"by \((\w+)\)", expression):
            assert grouped in labels
