"""Members of a population that only count; each exchange starts processes, so that little is imported."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ray import tune

ITERATIONS = 6
PATIENCE_S = 400.0
"""For processes to start, on a machine that has much else to do."""


class Member(tune.Trainable):
    """Counts to `ITERATIONS`; "gives_up" ends itself at 2 and "raises" at 4, when all others have paused."""

    def setup(self, config: dict[str, Any], folder: Path, spec: str, objective: str) -> None:
        self._folder, self._spec, self._objective = folder, spec, objective
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._name = json.loads(new_config[self._spec])["labels"][0]
        self._count = 0
        return True

    def step(self) -> dict[str, Any]:
        self._count += 1
        self._log("reached", self._count)
        if (self._name, self._count) in (("told/gives_up", 2), ("told/raises", 4)):
            others = {"told/good", "told/better"} | ({"told/raises"} if self._count == 2 else set())
            deadline = time.monotonic() + PATIENCE_S
            while len(list(self._folder.glob(f"saved-*-{self._count}"))) < len(others):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            if self._name == "told/raises":
                raise OSError("no space")
            return {"iteration": self._count, "status": "failed", "error": "X: gave up", "done": True}
        ended = self._count == ITERATIONS
        watched = {"utility": 0.5, "quality": 0.6, "nfe": 7.0, "cost": 7.0}
        report = {
            "iteration": self._count,
            "watched": watched,
            self._objective: 2.0 if "better" in self._name else 1.0,
        }
        return report | ({"status": "finished", "done": True} if ended else {})

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "count").write_text(str(self._count))
        self._log("saved", self._count)

    def load_checkpoint(self, checkpoint: Any) -> None:
        self._count = int((Path(checkpoint) / "count").read_text())

    def _log(self, what: str, count: int) -> None:
        (self._folder / f"{what}-{self._name.rpartition('/')[2]}-{count}").touch()
