"""Promotion: measure what is missing, compare with the champion, move the alias or say why not.

Always true here: a version is measured on the same prompts and seeds as the one it is compared with, and by
the same reward models; its rows are kept with it, so that the next candidate is compared without measuring it
again. Nothing is promoted past the gate but by `force`, which is recorded.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from actors.contracts import EpisodeRequest
from actors.errors import UserError
from actors.policy_folder import TrainedPolicy, read_trained_policy
from actors.prompts import PromptOptions
from cluster.runs import registered_scorers
from evaluation import held_out
from evaluation.bench import Bench, held_out_recipe
from evaluation.config import EvaluationConfig
from evaluation.evaluate import evaluation_requests
from evaluation.progress import Progress, progress_bar
from evaluation.rows import ImageRow, MethodTable, read_rows, tabulate, write_rows
from evaluation.statistics import Resampling
from learner import registry
from learner.champions import CHAMPION, Champions, Version

_BENCH_TAG = "held_out_bench"
"""Which backbone and reward models measured a version last."""


@dataclass(frozen=True)
class Gate:
    """What the gate measures on: see `evaluation.held_out`."""

    prompts: str | None = None
    seeds: int = 3
    margin: float | None = None
    measure: bool = False
    device: str | None = None


def promote_version(
    champions: Champions,
    model: str,
    gate: Gate,
    *,
    runs_dir: Path,
    reason: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Exit code 0 if the version is champion now, 1 if the gate refused it.

    Of a bare name it is the candidate that is promoted.
    """
    if force and not reason:
        raise UserError("--force: give --reason too; it is kept with the model")
    version = champions.find(model if "@" in model or "/" in model else f"{model}@{registry.CANDIDATE}")
    if CHAMPION in version.aliases:
        _say({"version": version.version, "promoted": True, "reason": "it is the champion already"}, as_json)
        return 0
    if force:
        assert reason is not None
        champions.promote(version, reason, forced=True)
        told = {"version": version.version, "promoted": True, "forced": True, "reason": reason}
        _say(told, as_json)
        return 0
    with progress_bar() as progress:
        verdict, tables = _judge(champions, version, gate, runs_dir, progress)
    if verdict.promoted:
        champions.promote(version, reason or verdict.reason)
    told = {
        "version": version.version,
        "promoted": verdict.promoted,
        "reason": verdict.reason,
        "against": verdict.against,
        "difference": verdict.difference.value,
        "ci95": verdict.difference.ci95,
        "methods": {name: _numbers(table) for name, table in tables.items()},
    }
    if not as_json:
        _print(tables)
        low, high = verdict.difference.ci95
        typer.echo(f"against {verdict.against}: {told['difference']:+.4f} (95%: {low:+.4f} to {high:+.4f})")
    _say(told, as_json)
    return 0 if verdict.promoted else 1


def _judge(
    champions: Champions, version: Version, gate: Gate, runs_dir: Path, progress: Progress
) -> tuple[held_out.Verdict, dict[str, MethodTable]]:
    """The verdict, and the tables it was made on: the candidate's first."""
    policy_dir = registry.policy_folder(version.label, uri=champions.uri)
    trained = read_trained_policy(policy_dir)
    config = held_out.held_out_config(
        trained,
        scorers=registered_scorers(champions, version, trained.backbone),
        prompts=gate.prompts,
        seeds=gate.seeds,
        device=gate.device,
    )
    requests = evaluation_requests(config, PromptOptions("--prompts", "--prompts", "--prompts"))
    measuring = _Measuring(champions, config, requests, trained, gate.measure, progress)
    strata = tuple(request.tier or "" for request in requests[:: config.seeds])
    resampling = Resampling(len(strata), config.resamples, config.seed, strata)
    champion = champions.champion(version.name)
    candidate_rows = measuring.rows(version, policy_dir, None if champion is not None else measuring.identity)
    candidate = tabulate(f"version {version.version}", candidate_rows, requests)
    if champion is None:
        wanted = held_out.gate_baselines(trained.engine, candidate.mean("cost"))
        priced = replace(config, baselines=wanted)
        found = held_out.measure_baselines(
            policy_dir, requests, priced, measuring.open_bench, progress, runs_dir
        )
        tables = {name: tabulate(name, rows, requests) for name, rows in found.items()}
        verdict = held_out.against_schedules(candidate, tables, resampling)
        return verdict, {candidate.name: candidate, **tables}
    champion_dir = registry.policy_folder(champion.label, uri=champions.uri)
    read_trained_policy(champion_dir).check_backbone(trained.backbone_identity)
    name = f"champion, version {champion.version}"
    table = tabulate(name, measuring.rows(champion, champion_dir, measuring.used), requests)
    margin = held_out.MARGIN if gate.margin is None else gate.margin
    verdict = held_out.against_champion(candidate, table, resampling, margin)
    return verdict, {candidate.name: candidate, name: table}


class _Measuring:
    """Rows of versions on fixed requests: stored ones where they fit, else measured and stored."""

    def __init__(
        self,
        champions: Champions,
        config: EvaluationConfig,
        requests: Sequence[EpisodeRequest],
        trained: TrainedPolicy,
        again: bool,
        progress: Progress,
    ) -> None:
        self._champions, self._config, self._requests = champions, config, requests
        self._again, self._progress = again, progress
        self.open_bench: Callable[[], Bench] = cache(held_out_recipe(trained.backbone, config))
        self._requests_key = held_out.requests_key(requests)
        self.used: str | None = None
        """The bench that the rows given out so far were made on."""

    @property
    def identity(self) -> str:
        """Of the bench, which is opened for it."""
        return self.open_bench().identity

    def _file(self, bench: str) -> str:
        """Where a version's rows are: of these requests, made on that bench and on no other."""
        return f"{self._requests_key}-{bench}.parquet"

    def rows(self, version: Version, policy_dir: Path, bench: str | None) -> list[ImageRow]:
        """One row an image; stored ones only if they were made on `bench`, or on any if that is None."""
        made_on = bench or version.tags.get(_BENCH_TAG)
        if not self._again and made_on is not None:
            file = self._champions.attached(version, f"held_out/{self._file(made_on)}")
            if file is not None:
                self.used = made_on
                return read_rows(file)
        rows = held_out.measure_policy(
            policy_dir, self._requests, self._config, self.open_bench, self._progress
        )
        self.used = self.identity
        table = tabulate("policy", rows, self._requests)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / self._file(self.used)
            write_rows(file, rows)
            self._champions.attach(version, file, "held_out")
        numbers = {f"held_out_{name}": value for name, value in _numbers(table).items()}
        self._champions.tag(version, {**numbers, _BENCH_TAG: self.used})
        return rows


def _numbers(table: MethodTable) -> dict[str, float]:
    return {
        "utility": float(held_out.utilities(table).mean()),
        **{name: table.mean(name) for name in ("quality", "nfe", "looks", "cost")},
        "prompts": len(table.quality_PS),
    }


def _print(tables: Mapping[str, MethodTable]) -> None:
    headers = ("held out", "utility", "quality", "NFE", "looks", "cost", "prompts")
    table = Table(*headers, box=None, padding=(0, 1), pad_edge=False)
    for name, measured in tables.items():
        numbers = _numbers(measured)
        digits = (4, 4, 2, 2, 2, 0)
        cells = [f"{value:.{places}f}" for value, places in zip(numbers.values(), digits, strict=True)]
        table.add_row(name, *cells)
    Console().print(table)


def _say(told: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    else:
        verb = "promoted" if told["promoted"] else "refused"
        typer.echo(f"version {told['version']} {verb}: {told['reason']}")
