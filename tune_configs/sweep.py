"""Runs a sweep on Ray Tune: its trials share one rewards service, and one machine's memory.

Always true here: what can be found wrong is found before Ray starts; a trial that has ended is in the
ledger before the next one begins, so that whatever ends a sweep, going on with it runs only what is
missing.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import yaml

from actors.errors import UserError, redacted
from actors.files import written_aside
from learner import session
from learner.config import RunConfig
from rewards_service import service
from rewards_service.pool_config import node_label
from tune_configs.admission import Admission
from tune_configs.ledger import Ledger, Outcome, is_done, read_outcomes
from tune_configs.objective import judged_requests
from tune_configs.plan import Place, Planner, TrialSpec
from tune_configs.schedule_search import schedule_parts, schedule_specs, search_schedules
from tune_configs.search import Handout, Planned, Proposed
from tune_configs.sweep_config import SweepConfig
from tune_configs.sweep_files import Sweep, as_sweep, sweep_to_dict
from tune_configs.trial import OpenWorld
from tune_configs.tuner import Recorder, Report, make_tuner

FILE = "sweep.yaml"
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and the trials' own files have it all
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # of a trial that failed
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class Prepared:
    """A sweep that has been found possible; specs: the trials that are known beforehand."""

    sweep: Sweep
    overrides: tuple[str, ...]
    folder: Path
    tracking_uri: str
    planner: Planner
    specs: list[TrialSpec]

    @property
    def base(self) -> RunConfig:
        """What all trials have in common."""
        return self.planner.base


def prepare(sweep: Sweep, overrides: Sequence[str], folder: Path, tracking_uri: str) -> Prepared:
    """Compose every trial and look at what judges them. Raises UserError."""
    planner = Planner(sweep, overrides)
    judged_requests(planner.base, sweep.config.judge)
    if sweep.config.schedule is not None:
        specs = schedule_specs(sweep.config, planner.base, overrides)
        sweep = sweep._replace(parts=schedule_parts(sweep.config))
    else:
        specs = planner.trials()
    return Prepared(sweep, tuple(overrides), folder, tracking_uri, planner, specs)


def stored(folder: Path) -> tuple[Sweep, tuple[str, ...]]:
    """The sweep that a folder holds, with its overrides. Raises UserError."""
    try:
        content = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))
        sweep = as_sweep(content["group"], content["file"], content["config"])
        return sweep, tuple(content["overrides"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: holds no sweep; give one that `addiffusion tune` has made") from error


def run_sweep(
    prepared: Prepared, report: Report = lambda line: None, *, open_world: OpenWorld | None = None
) -> dict[str, Outcome]:
    """Run what is missing of a sweep; gives the outcomes of all trials that ended, by their id.

    open_world: how a trial opens backbone and rewards; None starts one rewards service for all of them.
    Raises UserError for what the cluster has no room for.
    """
    folder, config = prepared.folder, prepared.sweep.config
    if config.schedule is not None:
        write_sweep(prepared)
        return search_schedules(folder, config, prepared.base, prepared.specs, report)
    known = read_outcomes(folder)
    missing = [spec for spec in prepared.specs if not is_done(known, spec)]
    if config.searcher == "none" and not missing:
        return known
    bundles = trial_bundles(prepared.base, config)
    needed = _needed(prepared.base, open_world is None)
    cpus = max(os.cpu_count() or 1, math.ceil(needed["CPU"] + sum(each["CPU"] for each in bundles)))
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    with session.connected(prepared.base.resources.address, prepared.base.resources.num_cpus or cpus):
        check_room(bundles, needed, ray.cluster_resources())
        write_sweep(prepared)
        ledger = Ledger(folder)
        with _world(prepared.base, open_world) as opened:
            admission = Admission(
                config.memory_reserve_gib,
                nodes=sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes()),
                gpus=ray.cluster_resources().get("GPU", 0.0),
                most=config.max_concurrent,
            )
            source = Proposed(prepared.planner, ledger) if config.searcher == "optuna" else Planned(missing)
            place = Place(folder.absolute(), redacted(prepared.tracking_uri), Path.cwd())
            tuner = make_tuner(
                config,
                prepared.base.ppo.iterations,
                place,
                bundles,
                opened,
                missing,
                None if config.scheduler == "pbt" else Handout(source, admission),
                Recorder(ledger, report, len(missing) or config.trials),
            )
            tuner.fit()
    return ledger.outcomes


def trial_bundles(base: RunConfig, config: SweepConfig) -> list[dict[str, float]]:
    """What Ray reserves for a trial: its own process, and one bundle for each of its env runners."""
    resources = base.resources
    own = {"CPU": config.cpus_per_trial}
    label = node_label(resources.denoiser_resource)
    if resources.num_env_runners == 0:
        return [own | {"GPU": resources.gpus_per_env_runner} | label]
    runner = {"CPU": resources.cpus_per_env_runner, "GPU": resources.gpus_per_env_runner} | label
    return [own | {"GPU": 0.0}] + [runner] * resources.num_env_runners


def check_room(
    bundles: Sequence[Mapping[str, float]], needed: Mapping[str, float], there: Mapping[str, float]
) -> None:
    """UserError if not even one trial fits beside the rewards service: `needed` is the service's."""
    for kind, option in (("GPU", "resources.gpus_per_env_runner"), ("CPU", "sweep.cpus_per_trial")):
        asked = sum(bundle[kind] for bundle in bundles)
        left = there.get(kind, 0.0) - needed[kind]
        if asked > left + 1e-9:
            raise UserError(
                f"{option}: one trial asks for {asked:g} {kind}s, and {max(left, 0.0):g} of "
                f"{there.get(kind, 0.0):g} are left beside the rewards service's {needed[kind]:g}"
            )
    for name in sorted({kind for bundle in bundles for kind in bundle} - {"CPU", "GPU"}):
        if name not in there:
            raise UserError(f"resources.denoiser_resource={name!r}: no node of the cluster offers it")


def _needed(base: RunConfig, own_service: bool) -> dict[str, float]:
    """CPUs and GPUs of the rewards service, if the sweep starts one."""
    if not own_service or base.rewards.service is not None:
        return {"CPU": 0.0, "GPU": 0.0}
    pools = [pool.config for pool in session.reward_pools(base)]
    return {
        "CPU": sum((pool.replicas or 1) * (pool.cpus or 0.0) for pool in pools),
        "GPU": sum((pool.replicas or 1) * (pool.gpus or 0.0) for pool in pools),
    }


@contextlib.contextmanager
def _world(base: RunConfig, given: OpenWorld | None) -> Iterator[OpenWorld]:
    """How trials open their world: all of them with one rewards service, which ends with the sweep."""
    if given is not None:
        yield given
        return
    if base.rewards.service is not None:
        yield session.world
        return
    name, replicas = f"sweep-{uuid.uuid4().hex[:8]}", []
    try:
        try:
            replicas = service.start(name, session.reward_pools(base))
        except ValueError as error:
            raise UserError(str(error)) from error
        yield functools.partial(_joined, name)
    finally:
        for replica in replicas:
            ray.kill(replica)


@contextlib.contextmanager
def _joined(name: str, config: RunConfig) -> Iterator[session.World]:
    with session.world(replace(config, rewards=replace(config.rewards, service=name))) as world:
        yield world


def write_sweep(prepared: Prepared) -> None:
    """Write sweep.yaml, from which `stored` reads it. Raises UserError where the disk refuses."""
    content = {
        "group": prepared.sweep.group,
        "file": prepared.sweep.file,
        "config": sweep_to_dict(prepared.sweep.config),
        "overrides": list(prepared.overrides),
    }
    try:
        with written_aside(prepared.folder / FILE) as aside:
            aside.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise UserError(f"runs_dir: cannot write to {prepared.folder} ({error.strerror})") from error
