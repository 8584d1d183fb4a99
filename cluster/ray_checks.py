"""The Ray cluster that a run names: whether it answers, what its nodes have, whether the run fits.

Always true here: the cluster is asked by a process of its own that ends in time, so that an address where
nobody answers costs seconds, and the doctor itself never joins a cluster.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.errors import UserError
from cluster.check import Check
from learner.placement import Demand, Node, check_apart, describe_nodes, lack
from learner.resources import ResourcesConfig

TIMEOUT_S = 60.0
SHARED_MEMORY = Path("/dev/shm")
GIB = 2**30


def cluster(
    resources: ResourcesConfig, wanted: list[Demand], timeout_s: float = TIMEOUT_S
) -> Iterator[Check]:
    """Two rows: the cluster of resources.address answers, and it has room for the run."""
    if resources.address is None:
        return
    try:
        found = state_at(resources.address, timeout_s)
    except UserError as error:
        hint = "start it (ray start --head), give its address, or resources.address=null for a local one"
        yield Check("Ray cluster", False, str(error), hint)
        return
    scaled = ", and an autoscaler" if found["autoscaled"] else ""
    yield Check("Ray cluster", True, f"{resources.address}: {describe_nodes(found['nodes'])}{scaled}")
    nodes = [Node.of(node["Resources"]) for node in found["nodes"] if node["Alive"]]
    asked = ", ".join(f"{demand.count} x {demand.what}" for demand in wanted)
    missing = lack(wanted, nodes)
    if missing is not None and found["autoscaled"]:
        asked += f"; not yet there: the autoscaler will be asked, and waited for {resources.patience_s:g} s"
        missing = None
    try:
        check_apart(resources, wanted, nodes)
    except UserError as error:
        missing = missing or str(error)
    yield Check("room on the cluster", missing is None, asked, missing or "")


def state_at(address: str, timeout_s: float) -> Mapping[str, Any]:
    """What `cluster_state` finds there. Raises UserError with the reason if nobody answers in time."""
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "cluster.cluster_state", address],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{address}: no answer within {timeout_s:g} s") from error
    for line in answer.stdout.splitlines():
        if line.startswith("{"):  # and none of what Ray may print
            found: Mapping[str, Any] = json.loads(line)
            return found
    reason = next(reversed(answer.stderr.strip().splitlines()), f"exit code {answer.returncode}")
    raise UserError(reason if address in reason else f"{address}: {reason}")


def object_store(wanted_bytes: int) -> Check:
    """Shared memory for the object store of a local Ray; where it is short Ray uses the disk, slowly."""
    if not SHARED_MEMORY.is_dir():  # not Linux
        return Check("object store", True, "on disk, as ever on this system")
    free = shutil.disk_usage(SHARED_MEMORY).free
    found = f"{free / GIB:.2f} GiB free in {SHARED_MEMORY}, {wanted_bytes / GIB:.2f} wanted"
    hint = "more shared memory: docker run --shm-size=2g, or in Kubernetes an emptyDir with medium: Memory"
    return Check("object store", free >= wanted_bytes, found, hint)
