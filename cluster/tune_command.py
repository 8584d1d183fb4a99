"""`addiffusion tune`: sweeps and ablations, going on with them, and long training of what they found best.

Always true here: every trial is composed before Ray starts; whatever ends a sweep, its tables are written of
what has ended, and the last line says how to go on.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from actors.errors import UserError, redacted
from cluster.promotion import Gate, promote_version
from cluster.runs import free_name
from cluster.train_command import FAILED, INTERRUPTED, check_devices, check_inputs, check_reward_models
from learner import registry
from learner.champions import Champions
from learner.registration import read_result, register_run
from tune_configs.conversion import nearest
from tune_configs.ledger import Outcome, is_done, read_outcomes
from tune_configs.loading import STUDIES, compose
from tune_configs.mlflow_sweep import SweepTracking
from tune_configs.objective import better
from tune_configs.plan import TrialSpec, shared_overrides
from tune_configs.results import Row, best_variants, table
from tune_configs.sweep import FILE, Prepared, prepare, run_sweep, stored
from tune_configs.sweep_config import SweepConfig
from tune_configs.sweep_files import PREFIX, Sweep, read_sweep, sweep_files
from tune_configs.tables import CSV, HEADERS, LATEX, MARKDOWN, REPORT, cells, write_results

_NAME = "name="
_SEED = "seed="
_HEAD = "engine.refine_head="


def tune_and_report(overrides: Sequence[str], *, resume: str | None, long: str | None, dry_run: bool) -> int:
    """A new sweep, an earlier one gone on with, or its best for long; the exit code.

    0: all trials ended; 1: some failed, or the gate refused; 130: it was interrupted.
    """
    if resume is not None and long is not None:
        raise UserError("--long: give it or --resume, not both")
    if resume is not None:
        if overrides:
            raise UserError(f"{overrides[0]}: a sweep that exists keeps its options; give --resume alone")
        folder = find_sweep(resume, Path(compose().run.runs_dir))
        prepared = _prepare(folder, *stored(folder))
    elif long is not None:
        prepared = _longer(find_sweep(long, Path(compose().run.runs_dir)), overrides)
    else:
        prepared = _prepare(*_new_sweep(overrides), words=overrides)
    if dry_run:
        _tell(prepared)
        return 0
    check_devices(compose(shared_overrides(prepared.sweep, prepared.overrides)))
    code, rows, outcomes = _run(prepared)
    if long is None or code == INTERRUPTED:
        return code
    return _promote_best(prepared, rows, outcomes)


def _tell(prepared: Prepared) -> None:
    """The trials that are to be run, a line each; of those that a searcher will propose what is known."""
    outcomes = read_outcomes(prepared.folder)
    for spec in prepared.specs:
        if not is_done(outcomes, spec):
            typer.echo(f"{spec.id} ({', '.join(spec.labels)}): {shlex.join(spec.overrides)}")
    config = prepared.sweep.config
    if config.searcher != "none":
        left = config.trials - sum(outcome.status != "failed" for outcome in outcomes.values())
        alike = shlex.join([*config.base, *prepared.overrides])
        typer.echo(f"{left} trials that {config.searcher} proposes: {alike}")
        for option, dimension in config.space.items():
            kind = next(kind for kind in ("uniform", "loguniform", "choice") if getattr(dimension, kind))
            typer.echo(f"  {option}: {kind} {list(dimension.ends)}")


def find_sweep(name: str, runs_dir: Path) -> Path:
    """The folder of a sweep, by its name or its path. Raises UserError."""
    for folder in (runs_dir / name, Path(name)):
        if (folder / FILE).is_file():
            return folder
    known = sorted(file.parent.name for file in runs_dir.glob(f"*/{FILE}"))
    listed = f"give one of {', '.join(known)}" if known else "there is none yet"
    raise UserError(f"sweep '{name}': not found in {runs_dir}; {listed}{nearest(name, known)}")


def _given(folder: Path) -> str:
    """How a command line names a sweep: by its name where that finds it, else by its path."""
    usual = Path(compose().run.runs_dir) / folder.name
    return shlex.quote(folder.name if usual.absolute() == folder.absolute() else str(folder))


def _new_sweep(overrides: Sequence[str]) -> tuple[Path, Sweep, list[str]]:
    """A folder that is free, the sweep that the overrides name, and those that are for its trials."""
    chosen = [text.partition("=") for text in overrides if text.partition("=")[0] in STUDIES]
    if len(chosen) != 1:
        every = "; ".join(f"{group}={'|'.join(sweep_files(group))}" for group in STUDIES)
        raise UserError(f"tune: give one of {every}")
    ((group, _, file),) = chosen
    own = [text for text in overrides if text.startswith(PREFIX)]
    named = [text for text in overrides if text.startswith(_NAME)]
    rest = [
        text for text in overrides if not text.startswith((PREFIX, _NAME, *(f"{one}=" for one in STUDIES)))
    ]
    _check_seed(rest)
    sweep = read_sweep(group, file, own)
    run = compose([*rest, *named]).run
    name, runs_dir = run.name if named else None, Path(run.runs_dir)
    wanted = file if group == "sweep" else f"{group}-{file}"
    folder = runs_dir / (name or _free(wanted, runs_dir))
    if folder.exists():
        raise UserError(
            f"name={folder.name}: {folder} exists; --resume {_given(folder)} goes on with a sweep"
        )
    return folder, sweep, rest


def _check_seed(overrides: Sequence[str]) -> None:
    """UserError for a training's seed, which each trial has of its own."""
    for text in overrides:
        if text.startswith(_SEED):
            seed = text.removeprefix(_SEED)
            raise UserError(f"{text}: trials are seeded by the sweep; give sweep.seeds=[{seed}]")


def _free(name: str, runs_dir: Path) -> str:
    """A name that neither a run nor a sweep has."""
    numbered = (f"{name}-{number}" for number in range(2, 10_000))
    return next(one for one in (free_name(name, runs_dir), *numbered) if not (runs_dir / one).exists())


def _prepare(folder: Path, sweep: Sweep, overrides: Sequence[str], words: Sequence[str]) -> Prepared:
    """Compose everything and look at what can be missing, before anything starts."""
    settings = compose(shared_overrides(sweep, overrides))
    check_inputs(settings)
    check_reward_models(settings)
    uri = settings.run.registry.tracking_uri or registry.tracking_uri(folder.parent)
    prepared = prepare(
        sweep, [redacted(text) for text in overrides], folder, uri, [redacted(word) for word in words]
    )
    if settings.run.backbone.scorers is not None:  # the embedded world's own give everything
        _check_scores(prepared.specs)
    for spec in prepared.specs:
        for text in spec.overrides:
            if text.startswith(_HEAD) and not Path(text.removeprefix(_HEAD)).is_file():
                file, engine = text.removeprefix(_HEAD), settings.run.engine
                raise UserError(
                    f"{spec.labels[0]}: {text}: no such file; make it with: python -m actors.region_training "
                    f"{file} --steps {engine.num_steps} --guidance {engine.guidance_scale:g}"
                )
    return prepared


def _check_scores(specs: Sequence[TrialSpec]) -> None:
    """UserError for a trial that asks its reward models for a score that they do not give."""
    for spec in specs:
        try:
            check_reward_models(compose(spec.overrides))
        except UserError as error:
            raise UserError(f"{spec.labels[0]}: {error}") from error


def _run(prepared: Prepared) -> tuple[int, list[Row], dict[str, Outcome]]:
    """Run what is missing, write the tables, and say what came of it."""
    folder, sweep = prepared.folder, prepared.sweep
    typer.echo(f"sweep: {folder}")
    interrupted = False
    try:
        run_sweep(prepared, typer.echo)
    except KeyboardInterrupt:  # which Tune keeps to itself, so outside of it
        if not (folder / FILE).exists():
            raise
        interrupted = True
    except BaseException:
        if (folder / FILE).exists():  # else it was refused, and the message is all there is
            _tables(prepared)
        raise
    rows, outcomes, page = _tables(prepared)
    _show(sweep, rows)
    _record(prepared, outcomes)
    typer.echo(f"report: {page}")
    planned = len(prepared.specs) or sweep.config.trials
    ended = len(outcomes)
    failed = sum(outcome.status == "failed" for outcome in outcomes.values())
    if interrupted or ended < planned:
        typer.echo(
            f"{ended} of {planned} trials have ended; go on with: addiffusion tune --resume {_given(folder)}"
        )
        return INTERRUPTED, rows, outcomes
    if failed:
        typer.echo(
            f"{failed} of {planned} failed; try them again: addiffusion tune --resume {_given(folder)}"
        )
    return (FAILED if failed else 0), rows, outcomes


def _tables(prepared: Prepared) -> tuple[list[Row], dict[str, Outcome], Path]:
    outcomes = read_outcomes(prepared.folder)
    specs = prepared.specs or [outcome.spec for outcome in outcomes.values()]
    rows = table(prepared.sweep, specs, outcomes)
    command = f"addiffusion tune {shlex.join(prepared.words)}"
    return rows, outcomes, write_results(prepared.folder, prepared.sweep, rows, command=command)


def _show(sweep: Sweep, rows: Sequence[Row]) -> None:
    shown = Table(*HEADERS, box=None, padding=(0, 1), pad_edge=False)
    for row in rows:
        shown.add_row(*cells(sweep, row))
    Console(width=200, soft_wrap=True).print(shown)


def _record(prepared: Prepared, outcomes: Mapping[str, Outcome]) -> None:
    """Parent and children in MLflow; a failing one is said, no error."""
    settings = prepared.base.registry
    if not settings.enabled:
        return
    files = [prepared.folder / name for name in (CSV, MARKDOWN, LATEX, REPORT)]
    try:
        tracking = SweepTracking(prepared.folder, prepared.sweep, prepared.tracking_uri, settings.experiment)
        tracking.send(outcomes, files)
    except Exception as error:  # whatever a server, a proxy or a database may raise
        reason = redacted((str(error).splitlines() or [""])[0])
        typer.echo(
            f"not recorded in MLflow: {type(error).__name__}: {reason}; --resume tries again", err=True
        )


# -- long training -----------------------------------------------------------------------------------------


def _longer(folder: Path, overrides: Sequence[str]) -> Prepared:
    """The best variants of a sweep as a sweep of its own, in the folder NAME-long."""
    sweep, *_ = stored(folder)
    target = folder.with_name(f"{folder.name}-long")
    if (target / FILE).is_file():
        if overrides:
            raise UserError(f"{overrides[0]}: {target.name} exists and keeps its options; give --long alone")
        return _prepare(target, *stored(target))
    if sweep.config.schedule is not None:
        raise UserError(
            f"--long={folder.name}: {sweep.title} has no policies; give engine.timesteps of its ledger "
            "(trials.jsonl) to a training"
        )
    if sweep.config.scheduler == "pbt":
        raise UserError(
            f"--long={folder.name}: {sweep.title} changed its values while it trained, and has no variant to "
            "train anew; addiffusion registry register FOLDER/TRIAL takes a policy as it is"
        )
    outcomes = read_outcomes(folder)
    specs = {outcome.spec.id: outcome.spec for outcome in outcomes.values()}
    best = best_variants(sweep, table(sweep, specs.values(), outcomes), sweep.config.promoted)
    if not best:
        raise UserError(
            f"--long={folder.name}: no variant has finished; addiffusion tune --resume {_given(folder)}"
        )
    by_label = {label: spec for spec in specs.values() for label in spec.labels}
    _check_seed(overrides)
    longer = tuple(sweep.config.long) + tuple(overrides)
    variants = {row.label.replace("/", "-"): (*by_label[row.label].of_any_seed, *longer) for row in best}
    config = SweepConfig(
        description=f"The best of {sweep.title} ({folder.name}), trained for long.",
        variants=variants,
        seeds=sweep.config.seeds,
        metric=sweep.config.metric,
        judge=sweep.config.judge,
        cpus_per_trial=sweep.config.cpus_per_trial,
        max_concurrent=sweep.config.max_concurrent,
        memory_reserve_gib=sweep.config.memory_reserve_gib,
        max_failures=sweep.config.max_failures,
    )
    words = ("--long", folder.name, *overrides)
    return _prepare(target, Sweep("sweep", target.name, config, {target.name: config}), longer, words)


def _promote_best(prepared: Prepared, rows: Sequence[Row], outcomes: Mapping[str, Outcome]) -> int:
    """Register the best policy of the best variant, and put it before the gate; the gate's exit code."""
    metric = prepared.sweep.config.metric
    ranked = best_variants(prepared.sweep, rows, 1)
    if not ranked:
        raise UserError(f"--long: no variant of {prepared.folder.name} has finished")
    finished = [
        outcome
        for outcome in outcomes.values()
        if ranked[0].label in outcome.spec.labels and outcome.measured is not None
    ]
    best = max(finished, key=lambda outcome: better(metric) * (outcome.metric(metric) or 0.0))
    run_dir = prepared.folder / best.spec.id
    version = read_result(run_dir).model_version or register_run(run_dir)
    model = registry.model_name(prepared.base.backbone.name)
    typer.echo(f"{best.spec.id} is version {version} of {model}")
    return promote_version(
        Champions(prepared.tracking_uri),
        f"{model}/{version}",
        Gate(),
        runs_dir=prepared.folder.parent,
        reason=None,
        force=False,
        as_json=False,
    )
