"""`addiffusion registry calibrate`: the most economical stopping threshold that keeps the quality.

Always true here: a threshold is stored only with the certificate it was chosen by. A run's policy is changed
in its folder, in one rename; of a registered model there is a new version, the old one stays as it is.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from actors.errors import UserError
from actors.policy import load_policy, save_policy
from actors.policy_folder import CALIBRATION, STOP_THRESHOLD
from cluster.runs import registered_scorers, run_policy, settings_of
from evaluation.bench import held_out_recipe
from evaluation.held_out import held_out_config
from evaluation.methods import PolicyMethod, read_policy
from evaluation.progress import progress_bar
from evaluation.risk_control import Tested, certify, prompts_needed, upper_bound
from evaluation.stopping import StoppingTable, calibration_requests, measure_stopping
from rewards_service.scorers_config import ScorersConfig

if TYPE_CHECKING:
    from learner.champions import Version


@dataclass(frozen=True)
class Limits:
    """What is promised: a mean loss of at most delta, in the score's unit, with this confidence.

    largest_loss: what one image can lose; a larger loss counts as this.
    """

    delta: float
    confidence: float
    largest_loss: float

    def check(self) -> None:
        """UserError for limits that mean nothing."""
        if not 0.0 < self.largest_loss < math.inf:
            raise UserError(f"--largest-loss={self.largest_loss}: give a number above 0")
        if not 0.0 < self.delta < self.largest_loss:
            raise UserError(
                f"--delta={self.delta}: give a number above 0 and below --largest-loss={self.largest_loss:g}"
            )
        if not 0.0 < self.confidence < 1.0:
            raise UserError(f"--confidence={self.confidence}: give a number between 0 and 1, such as 0.95")


@dataclass(frozen=True)
class Sample:
    """What it is measured on: a file or the embedded world's validation captions, and how many images."""

    prompts: str | None
    limit: int
    seeds: int
    seed: int
    slots: int
    device: str | None


@dataclass(frozen=True)
class Certificate:
    """A stopping threshold and what was measured for it; losses, quality and NFE are means over prompts."""

    stop_threshold: float
    delta: float
    confidence: float
    largest_loss: float
    prompts: int
    seeds: int
    loss: float
    upper_bound: float
    """Of the loss, for this threshold alone and with the same confidence."""
    p_value: float
    quality: float
    quality_never_stopping: float
    nfe: float
    nfe_never_stopping: float
    cost: float
    cost_never_stopping: float
    score: str
    source: str
    measured_at: str


def calibrate_stopping(
    model: str,
    limits: Limits,
    sample: Sample,
    *,
    runs_dir: Path,
    tracking_uri: str | None,
    as_json: bool,
) -> int:
    """Measure, certify, and store; exit code 1, and nothing stored, if no threshold can be certified."""
    limits.check()
    from cluster.registry_command import open_registry
    from learner import registry

    policy_dir, version, champions = run_policy(model, runs_dir), None, None
    if policy_dir is None:
        champions = open_registry(runs_dir, tracking_uri)
        version = champions.find(model)
        policy_dir = registry.policy_folder(version.label, uri=champions.uri)
    policy = read_policy(policy_dir, greedy=True, seed=sample.seed)
    if version is None or champions is None:
        scorers = settings_of(policy_dir).evaluation.scorers
    else:
        scorers = registered_scorers(champions, version, policy.trained.backbone)
    table, metric = _measure(policy, sample, scorers)
    tested = certify(
        table.losses(limits.largest_loss),
        table.thresholds,
        limits.delta / limits.largest_loss,
        limits.confidence,
    )
    certificate = _choose(table, tested, limits, sample, metric)
    stored: dict[str, Any] = {}
    if certificate is not None:
        if version is None:
            _store(policy_dir, policy_dir, certificate)
            stored = {"policy": str(policy_dir)}
        else:
            assert champions is not None
            config = champions.config(version)
            stored = {"version": _register(policy_dir, version, config, champions.uri, certificate)}
    if as_json:
        certified = None if certificate is None else asdict(certificate)
        nfe_T = table.means("nfe")[1:].tolist()
        told = [{**asdict(one), "nfe": nfe} for one, nfe in zip(tested, nfe_T, strict=True)]
        typer.echo(json.dumps({"certificate": certified, **stored, "tested": told}, indent=2))
        return 0 if certificate is not None else 1
    _print(table, tested, limits)
    if certificate is None:
        typer.echo(_why_not(table, tested, limits))
        return 1
    typer.echo(
        f"stops early where stop is more probable than {certificate.stop_threshold:g}:"
        f" {certificate.nfe:.2f} NFE instead of {certificate.nfe_never_stopping:.2f};"
        f" mean loss {certificate.loss:.4f}, at most {limits.delta:g} with {limits.confidence:.0%} confidence"
        f" ({certificate.prompts} prompts)"
    )
    if certificate.cost == certificate.cost_never_stopping:
        typer.echo(
            "that saves nothing here: no image of the sample was stopped early by a certified threshold"
        )
    if version is None:
        typer.echo(f"stored in {policy_dir}; the registry's version of this run stays as it was")
    else:
        typer.echo(f"stored as version {stored['version']} of {version.name}, @{registry.CANDIDATE} now")
    return 0


def _measure(
    policy: PolicyMethod, sample: Sample, scorers: ScorersConfig | str | None
) -> tuple[StoppingTable, str]:
    """The table, and the name of the score."""
    config = held_out_config(policy.trained, scorers=scorers, prompts=sample.prompts, device=sample.device)
    requests = calibration_requests(sample.prompts, limit=sample.limit, seeds=sample.seeds, seed=sample.seed)
    bench = held_out_recipe(policy.trained.backbone, config)()
    with progress_bar() as progress:
        table = measure_stopping(
            bench,
            policy,
            requests,
            seeds=sample.seeds,
            slots=sample.slots,
            progress=lambda done, total: progress("calibration", done, total),
        )
    return table, bench.metric


def _choose(
    table: StoppingTable, tested: Sequence[Tested], limits: Limits, sample: Sample, metric: str
) -> Certificate | None:
    """The certified threshold with the lowest mean cost; of equals the safest."""
    cost_T, nfe, quality = table.means("cost"), table.means("nfe"), table.means("quality")
    certified = [index for index, one in enumerate(tested) if one.certified]
    if not certified:
        return None
    best = min(certified, key=lambda index: (round(float(cost_T[index + 1]), 9), index))
    chosen, prompts = tested[best], len(table.nfe_PSK)
    return Certificate(
        stop_threshold=chosen.threshold,
        delta=limits.delta,
        confidence=limits.confidence,
        largest_loss=limits.largest_loss,
        prompts=prompts,
        seeds=sample.seeds,
        loss=chosen.risk * limits.largest_loss,
        upper_bound=upper_bound(chosen.risk, prompts, limits.confidence) * limits.largest_loss,
        p_value=chosen.p_value,
        quality=float(quality[best + 1]),
        quality_never_stopping=float(quality[0]),
        nfe=float(nfe[best + 1]),
        nfe_never_stopping=float(nfe[0]),
        cost=float(cost_T[best + 1]),
        cost_never_stopping=float(cost_T[0]),
        score=metric,
        source=sample.prompts or "shapes, validation",
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _store(policy_dir: Path, target: Path, certificate: Certificate) -> None:
    """The policy with its certificate among its metadata."""
    network, metadata = load_policy(policy_dir)
    save_policy(target, network, {**metadata, CALIBRATION: asdict(certificate)})


def _register(
    policy_dir: Path,
    version: Version,
    config: dict[str, Any] | None,
    uri: str,
    certificate: Certificate,
) -> str:
    """A new version beside the one that was calibrated."""
    from learner import registry

    kept: dict[str, str] = {
        name: version.tags[name] for name in ("backbone", "run_dir", "ended") if name in version.tags
    }
    with tempfile.TemporaryDirectory() as folder:
        calibrated = Path(folder) / "policy"
        shutil.copytree(policy_dir, calibrated)
        _store(policy_dir, calibrated, certificate)
        return registry.register(
            calibrated,
            name=version.name,
            uri=uri,
            run_id=registry.new_run(
                uri, registry.EXPERIMENT, f"{version.name}-{version.version}-calibrated", config or {}
            ),
            metrics={"calibration_loss": certificate.loss, "nfe": certificate.nfe},
            step=0,
            config=config or {},
            tags={
                **kept,
                "calibrated_from": version.version,
                STOP_THRESHOLD: f"{certificate.stop_threshold:g}",
                "certificate": json.dumps(asdict(certificate)),
            },
            alias=registry.CANDIDATE,
        )


def _why_not(table: StoppingTable, tested: Sequence[Tested], limits: Limits) -> str:
    """One line: more prompts, and how many; or that none would help."""
    prompts, first = len(table.nfe_PSK), tested[0]
    needed = prompts_needed(first.risk, limits.delta / limits.largest_loss, limits.confidence)
    what = f"no threshold can be certified for delta {limits.delta:g} with {prompts} prompts"
    if needed is None:
        return (
            f"{what}: even stopping only above {first.threshold:g} loses"
            f" {first.risk * limits.largest_loss:.4f}; give a larger --delta"
        )
    at_least = "even if no image lost anything" if first.risk == 0.0 else "if the losses stay as they are"
    return (
        f"{what}: {needed} are needed {at_least}; give more prompts, a larger --delta, a smaller"
        " --largest-loss, or a lower --confidence"
    )


def _print(table: StoppingTable, tested: Sequence[Tested], limits: Limits) -> None:
    """Every threshold at which something changes."""
    headers = ("stop above", "mean loss", "p", "certified", "NFE", "cost", "quality")
    shown = Table(*headers, box=None, padding=(0, 1), pad_edge=False)
    nfe, cost, quality = (table.means(name) for name in ("nfe", "cost", "quality"))

    def numbers(index: int) -> tuple[str, ...]:
        return f"{nfe[index]:.2f}", f"{cost[index]:.2f}", f"{quality[index]:.4f}"

    shown.add_row("never", "0", "", "", *numbers(0))
    before = (0.0, float(nfe[0]), False)
    for index, one in enumerate(tested, start=1):
        now = (one.risk, float(nfe[index]), one.certified)
        if now != before:
            loss = f"{one.risk * limits.largest_loss:.4f}"
            certified = "yes" if one.certified else "no"
            shown.add_row(f"{one.threshold:g}", loss, f"{one.p_value:.3g}", certified, *numbers(index))
        before = now
    Console().print(shown)
