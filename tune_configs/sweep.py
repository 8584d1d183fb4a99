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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import yaml

from actors.errors import UserError, redacted
from actors.files import written_aside
from learner import session
from learner.config import RunConfig
from learner.connection import connected
from learner.placement import RUNNER, Demand, demands
from learner.run_lock import alone
from rewards_service import service
from tune_configs.admission import Admission
from tune_configs.fixed_schedules import fixed_specs, is_fixed, measure_fixed
from tune_configs.ledger import Ledger, Outcome, is_done, read_outcomes
from tune_configs.objective import judged_requests
from tune_configs.plan import Place, Planner, TrialSpec, shared_overrides
from tune_configs.schedule_search import schedule_parts, schedule_specs, search_schedules
from tune_configs.search import Handout, Planned, Proposed
from tune_configs.sweep_config import SweepConfig
from tune_configs.sweep_files import Sweep, as_sweep, sweep_to_dict
from tune_configs.trial import OpenWorld
from tune_configs.tuner import Recorder, Report, make_tuner

FILE = "sweep.yaml"
_CPUS = "sweep.cpus_per_trial"
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and the trials' own files have it all
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # of a trial that failed
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class Prepared:
    """A sweep that has been found possible; specs: the trials that are known beforehand; words: that a user
    gave `addiffusion tune`, from which the same sweep comes again.
    """

    sweep: Sweep
    overrides: tuple[str, ...]
    folder: Path
    tracking_uri: str
    planner: Planner
    specs: list[TrialSpec]
    words: tuple[str, ...] = ()

    @property
    def base(self) -> RunConfig:
        """What all trials have in common."""
        return self.planner.base


def prepare(
    sweep: Sweep, overrides: Sequence[str], folder: Path, tracking_uri: str, words: Sequence[str] = ()
) -> Prepared:
    """Compose every trial and look at what judges them. Raises UserError."""
    planner = Planner(sweep, overrides)
    if sweep.config.schedule is None and not any(trial_bundles(planner.base, sweep.config)):
        raise UserError(
            f"{_CPUS}=0: give more, as a trial without env runners and GPUs asks for nothing else"
        )
    judged_requests(planner.base, sweep.config.judge)
    if sweep.config.schedule is not None:
        specs = schedule_specs(sweep.config, planner.base, overrides)
        sweep = sweep._replace(parts=schedule_parts(sweep.config))
    else:
        shared = shared_overrides(sweep, overrides)
        specs = [*fixed_specs(sweep.config, planner.base, shared), *planner.trials()]
    return Prepared(sweep, tuple(overrides), folder, tracking_uri, planner, specs, tuple(words))


def stored(folder: Path) -> tuple[Sweep, tuple[str, ...], tuple[str, ...]]:
    """The sweep that a folder holds, with its overrides and the words that it was asked for with.

    Raises UserError.
    """
    try:
        content = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))
        sweep = as_sweep(content["group"], content["file"], content["config"])
        overrides = tuple(content["overrides"])
        return sweep, overrides, tuple(content.get("words", (sweep.title, *overrides)))
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: holds no sweep; give one that `addiffusion tune` has made") from error


def run_sweep(
    prepared: Prepared, report: Report = lambda line: None, *, open_world: OpenWorld | None = None
) -> dict[str, Outcome]:
    """Run what is missing of a sweep; gives the outcomes of all trials that ended, by their id.

    open_world: how a trial opens backbone and rewards; None starts one rewards service for all of them.
    Raises UserError for what the cluster has no room for, and for a sweep that another process is running.
    """
    folder, config = prepared.folder, prepared.sweep.config
    if config.schedule is not None:
        with alone(folder, "sweep"):
            write_sweep(prepared)
            return search_schedules(folder, config, prepared.base, prepared.specs, report)
    known = read_outcomes(folder)
    missing = [spec for spec in prepared.specs if not is_done(known, spec)]
    done = sum(outcome.status != "failed" for outcome in known.values())
    if not missing and (config.searcher == "none" or done >= config.trials):
        return known
    resources, wanted = prepared.base.resources, trial_demands(prepared.base, config)
    if open_world is None:
        service_only = replace(resources, num_env_runners=0)
        wanted += demands(service_only, prepared.base.rewards)
    cpus = max(os.cpu_count() or 1, math.ceil(sum(demand.count * demand.cpus for demand in wanted)))
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    with connected(resources.address, resources.num_cpus or cpus):
        session.make_room(resources, wanted, report)
        with alone(folder, "sweep"), _world(prepared.base, open_world) as opened:
            write_sweep(prepared)
            ledger = Ledger(folder)
            admission = Admission(
                config.memory_reserve_gib,
                nodes=sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes()),
                gpus=ray.cluster_resources().get("GPU", 0.0),
                most=config.max_concurrent,
            )
            if schedules := [spec for spec in missing if is_fixed(spec)]:
                bundle = trial_bundles(prepared.base, config)[-1]  # an env runner's, where there are any
                measure_fixed(schedules, config, prepared.base, bundle, opened, ledger, report)
                missing = [spec for spec in missing if not is_fixed(spec)]
                if not missing:
                    return ledger.outcomes
            source = Proposed(prepared.planner, ledger) if config.searcher == "optuna" else Planned(missing)
            place = Place(folder.absolute(), redacted(prepared.tracking_uri), Path.cwd())
            tuner = make_tuner(
                config,
                prepared.base.ppo.iterations,
                place,
                trial_bundles(prepared.base, config),
                opened,
                missing,
                None if config.scheduler == "pbt" else Handout(source, admission),
                Recorder(ledger, report, len(missing) or config.trials),
            )
            tuner.fit()
    return ledger.outcomes


def trial_demands(base: RunConfig, config: SweepConfig) -> list[Demand]:
    """What one trial starts: its own process, and its env runners."""
    resources, alone = base.resources, base.resources.num_env_runners == 0
    gpus = resources.gpus_per_env_runner if alone else 0.0
    option, value = ("resources.gpus_per_env_runner", gpus) if gpus else (_CPUS, config.cpus_per_trial)
    own = Demand(
        "trial",
        option,
        1,
        config.cpus_per_trial,
        gpus,
        resources.denoiser_resource if alone else None,
        "resources.denoiser_resource",
        value,
    )
    return [own, *(demand for demand in demands(resources, base.rewards) if demand.what == RUNNER)]


def trial_bundles(base: RunConfig, config: SweepConfig) -> list[dict[str, float]]:
    """What Ray reserves for a trial: its own process, and one bundle for each of its env runners."""
    return [demand.bundle for demand in trial_demands(base, config) for _ in range(demand.count)]


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
        "words": list(prepared.words),
    }
    try:
        with written_aside(prepared.folder / FILE) as aside:
            aside.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise UserError(f"runs_dir: cannot write to {prepared.folder} ({error.strerror})") from error
