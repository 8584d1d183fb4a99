"""`addiffusion rewards calibrate`: what the reward's metrics are worth on this backbone's own images.

Always true here: it measures as a training run does, on the requests that the same options train on; without
a sample the numbers are the run's own. The references are kept for the runs to come; nothing else is written
but the file that was asked for, and that whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from actors.errors import UserError

if TYPE_CHECKING:
    from actors.contracts import EpisodeRequest
    from actors.references import Reference
    from learner.calibration import Calibration
    from learner.config import RunConfig


def calibrate_rewards(
    overrides: Sequence[str],
    *,
    prompts: int | None,
    seeds: int | None,
    episodes: int | None,
    device: str | None,
    out: Path | None,
) -> None:
    """Run the references of the configured requests, print scales and sigma, and write them if asked to.

    prompts, seeds: instead of prompts.limit and prompts.seeds; episodes: only so many references.
    """
    for option, value in (("--prompts", prompts), ("--seeds", seeds), ("--episodes", episodes)):
        if value is not None and value < 1:
            raise UserError(f"{option}={value}: give a whole number from 1")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise UserError(f"--out={out}: give a file in a folder that exists")

    from learner.calibration import calibrate
    from learner.train import training_requests
    from tune_configs.loading import compose

    config = compose(overrides).run
    options = config.prompts
    sample = replace(options, limit=prompts or options.limit, seeds=seeds or options.seeds)
    requests = training_requests(replace(config, prompts=sample))[:episodes]
    found, backbone = _references(config, requests, device or config.backbone.device)
    calibration = calibrate(found, replace(config.reward, sigma=None))
    Console().print(_table(found, calibration, config))
    if len({reference.request.prompt for reference in found}) == len(found):
        typer.echo("one image a prompt: these are differences between prompts; give --seeds=2 or more")
    measured_on = f"{len(found)} references of {backbone}"
    if out is not None:
        calibration.write(out, measured_on)
        typer.echo(f"measured on {measured_on}; to train with it: addiffusion train @{out}")
    else:
        scales = "".join(f" reward.scales.{name}={value!r}" for name, value in calibration.scales.items())
        typer.echo(f"measured on {measured_on}; to train with it:")
        typer.echo(f"reward.sigma={calibration.sigma!r}{scales}")


def _references(
    config: RunConfig, requests: Sequence[EpisodeRequest], device: str
) -> tuple[list[Reference], str]:
    """The references, and the backbone's identity."""
    import torch

    from actors.backbones.loading import load_backbone
    from evaluation.progress import progress_bar
    from learner.calibration import local_references
    from rewards_service.identity import scorers_identity
    from rewards_service.loading import build_scorers
    from rewards_service.local import LocalClient
    from shapes import weights

    torch.set_num_threads(config.resources.torch_threads)
    scorers = config.backbone.scorers or str(weights.PATH)
    backbone = load_backbone(replace(config.backbone, device=device))
    try:
        client = LocalClient(build_scorers(scorers, device))
    except ValueError as error:
        raise UserError(str(error)) from error
    with progress_bar() as progress:
        found = local_references(
            config,
            backbone,
            client,
            scorers_identity(scorers),
            requests,
            lambda done, total: progress("references", done, total),
        )
    return found, backbone.identity


def _table(found: Sequence[Reference], calibration: Calibration, config: RunConfig) -> Table:
    """Each metric: its mean, its scale, and what the reward does with it."""
    from rewards_service.contracts import METRICS

    table = Table("metric", "mean", "scale", "alpha", "beta", box=None)
    reward = config.reward
    for name, scale in calibration.scales.items():
        mean = sum(reference.scores[METRICS[name]] for reference in found) / len(found)
        weights = (f"{weight.get(name, 0.0):g}" for weight in (reward.alpha, reward.beta))
        table.add_row(name, f"{mean:.4g}", f"{scale:.4g}", *weights)
    table.add_row("sigma", "", f"{calibration.sigma:.4g}", "", "")
    return table
