"""The references of a run: taken from the folder that runs share, or run by its env runners.

Always true here: what is computed is kept piece by piece, so that an interruption costs the last piece only;
targets have the order of the run's requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from actors.contracts import EpisodeRequest
from actors.env_runner import DiffusionEnvRunner
from actors.ledger import Target
from actors.references import Reference, ReferenceKind, reference_config
from learner import references
from learner.config import RunConfig
from learner.env_runners import EnvRunners
from rewards_service.arithmetic import RewardConfig, required_outputs

#: Requests whose references are scored all the way, for normalisation and score scales.
_CALIBRATION_REQUESTS = 64
#: The seeds' second reward compares DDIM-50 with DDIM-20.
_SHORT = 0.4


class ReferenceRuns:
    """Gets the references of one run's requests.

    backbone, scorers: identities of what makes and judges the images; folder: shared with other runs.
    """

    def __init__(
        self,
        config: RunConfig,
        requests: Sequence[EpisodeRequest],
        runners: EnvRunners,
        report: Callable[[dict[str, Any]], None],
        *,
        backbone: str,
        scorers: str,
        folder: Path,
    ) -> None:
        self._config = config
        self._requests = requests
        self._runners = runners
        self._report = report
        self._backbone = backbone
        self._scorers = scorers
        self._folder = folder

    def observed(self, reward: RewardConfig) -> list[Reference]:
        """References of the first requests with all that was seen on the way, for the calibration."""
        num_steps = self._config.engine.num_steps
        pieces = self._run(self._requests[:_CALIBRATION_REQUESTS], reward, num_steps, observe=True)
        return [reference for piece in pieces for reference in piece]

    def complete(self, reward: RewardConfig, observed: Sequence[Reference] = ()) -> list[Reference]:
        """The references of all requests; those of `observed` are kept too."""
        return self._table(reward, self._config.engine.num_steps, observed)

    def targets(self, found: Sequence[Reference], reward: RewardConfig) -> tuple[Target, ...]:
        """What each request's episode is measured against, under a calibrated reward."""
        assert reward.sigma is not None, "the run is not calibrated"
        shorter: list[Reference] | None = None
        if reward.profile == "seed_v2":
            shorter = self._table(reward, max(round(_SHORT * self._config.engine.num_steps), 1), [])
        return tuple(
            Target(reference.scores, reward.sigma, None if shorter is None else shorter[index].scores)
            for index, reference in enumerate(found)
        )

    def _table(self, reward: RewardConfig, num_steps: int, observed: Sequence[Reference]) -> list[Reference]:
        engine, dtype = reference_config(self._config.engine, num_steps), self._config.backbone.dtype
        kind = ReferenceKind.of(engine, self._backbone, dtype, self._scorers)
        store = references.ReferenceStore(self._folder, kind)
        store.add(observed)
        return store.complete(
            self._requests,
            [name for name in required_outputs(reward) if name != "dino"],
            lambda missing: self._run(missing, reward, num_steps, observe=False),
        )

    def _run(
        self, requests: Sequence[EpisodeRequest], reward: RewardConfig, num_steps: int, *, observe: bool
    ) -> Iterator[list[Reference]]:
        """Computed by all env runners in parallel, a chunk at a time so that progress is seen."""

        def work(runner: DiffusionEnvRunner, share: list[EpisodeRequest]) -> list[Reference]:
            return runner.run_references(share, reward, num_steps, observe=observe)

        resources, total = self._config.resources, len(self._requests)
        chunk = resources.slots * max(resources.num_env_runners, 1)
        before = total - len(requests) if not observe else 0
        for start in range(0, len(requests), chunk):
            now = requests[start : start + chunk]
            yield self._runners.spread(now, work)
            self._report({"phase": "references", "done": before + start + len(now), "total": total})
