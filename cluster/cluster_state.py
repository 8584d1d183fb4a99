"""What a Ray cluster says of itself: `python -m cluster.cluster_state ADDRESS` prints one line of JSON.

Always true here: nothing on the cluster is changed, nothing is asked of its autoscaler.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.experimental.internal_kv import _internal_kv_get

from actors.errors import UserError
from learner.connection import connected


def state() -> dict[str, Any]:
    """Of the connected cluster: `ray.nodes()`, and whether an autoscaler can add some."""
    return {"nodes": ray.nodes(), "autoscaled": autoscaled()}


def autoscaled() -> bool:
    """Whether there are node types that an autoscaler starts.

    Ray's monitor runs on every head. Where it has nothing to start it calls each node node_ID, and where it
    has, by its type.
    """
    return any(kind and kind != f"node_{node}" for node, kind in _node_types())


def _node_types() -> Iterator[tuple[str, str]]:
    """By nodes' names, as the autoscaler of either version tells them; nothing until it has looked once."""
    told = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    if told is not None:
        report: Mapping[str, Any] = json.loads(told).get("autoscaler_report") or {}
        yield from (report.get("node_type_mapping") or {}).items()
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    if int(status.stats.autoscaler_version or 0):
        for node in (*status.active_nodes, *status.idle_nodes):
            yield node.node_id or "", node.ray_node_type_name


if __name__ == "__main__":
    try:
        with connected(sys.argv[1], log_to_driver=False):
            sys.stdout.write(f"{json.dumps(state())}\n")
    except UserError as error:
        sys.exit(str(error))
