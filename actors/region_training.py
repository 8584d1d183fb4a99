"""`python -m actors.region_training FILE`: fit the head that `engine.refine_region=learned` asks.

Trajectories of training prompts are run to the end by the plain schedule; what the head has to forecast
at each of their points is how much the clean prediction changes from there to the end, so that nobody has
to label anything.

Always true here: what is reported was measured on prompts that the head was not fitted on; the same
options give the same head.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch.nn import functional

from actors.backbones.config import BackboneConfig
from actors.backbones.loading import load_backbone
from actors.contracts import EpisodeRequest
from actors.engine import Engine, EngineConfig
from actors.errors import UserError
from actors.prompts import PromptOptions, load_prompts
from actors.region_head import RemainingChangeHead, local_change, log_change, save_region_head
from actors.schedule import SolverName

HELD_OUT = 0.2
"""Share of the prompts that measure and do not fit."""
FORGET = 0.2
"""Share of the rows that are fitted without their previous prediction: after a refine there is none."""
EPOCHS = 30
BATCH = 64
LR = 1e-2

Report = Callable[[int, int], None]
"""Called with how much is done, and how much there will be."""


@dataclass(frozen=True)
class Trajectories:
    """N points of trajectories, each with what the head sees and the `local_change` still to come.

    known_N: whether there is a previous prediction; without, its row holds the present one.
    """

    clean_NCHW: torch.Tensor
    previous_NCHW: torch.Tensor
    known_N: torch.Tensor
    timestep_N: torch.Tensor
    remaining_NHW: torch.Tensor

    def __len__(self) -> int:
        return len(self.clean_NCHW)

    def take(self, index_N: torch.Tensor) -> Trajectories:
        """Some of the rows."""
        return Trajectories(
            self.clean_NCHW[index_N],
            self.previous_NCHW[index_N],
            self.known_N[index_N],
            self.timestep_N[index_N],
            self.remaining_NHW[index_N],
        )


def collect_trajectories(
    engine: Engine, requests: Sequence[EpisodeRequest], *, batch: int = 16, report: Report | None = None
) -> Trajectories:
    """All points but the last of each request, run to the end by an engine that `plain_config` configured."""
    points = engine.schedule.points
    rows: list[Trajectories] = []
    for start in range(0, len(requests), batch):
        episodes = engine.begin(requests[start : start + batch])
        clean: list[torch.Tensor] = []
        for _ in points:
            engine.denoise(episodes)
            clean.append(torch.stack([episode.clean_CHW for episode in episodes]).cpu())
        for index, point in enumerate(points[:-1]):
            rows.append(
                Trajectories(
                    clean[index],
                    clean[max(index - 1, 0)],
                    torch.full((len(episodes),), index > 0),
                    torch.full((len(episodes),), point.timestep),
                    local_change(clean[index], clean[-1]),
                )
            )
        if report is not None:
            report(min(start + batch, len(requests)), len(requests))
    return Trajectories(
        torch.cat([row.clean_NCHW for row in rows]),
        torch.cat([row.previous_NCHW for row in rows]),
        torch.cat([row.known_N for row in rows]),
        torch.cat([row.timestep_N for row in rows]),
        torch.cat([row.remaining_NHW for row in rows]),
    )


def plain_config(config: EngineConfig) -> EngineConfig:
    """The same schedule with nothing to decide: every step is a forced one."""
    return replace(config, actions=("continue",), warmup_steps=config.num_steps - 1, max_nfe=config.num_steps)


def fit_region_head(
    data: Trajectories, *, epochs: int = EPOCHS, seed: int = 0, report: Report | None = None
) -> RemainingChangeHead:
    """A head fitted by Adam to the logarithm of the change, so that late and small ones count as much."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = RemainingChangeHead(data.clean_NCHW.shape[1])
    head.to(memory_format=torch.channels_last)  # backward takes half the time on a CPU
    batches = -(-len(data) // BATCH)
    optimizer = torch.optim.Adam(head.parameters(), LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * batches)
    for epoch in range(epochs):
        for index_B in torch.randperm(len(data), generator=generator).split(BATCH):
            rows = data.take(index_B)
            known_B = rows.known_N & (torch.rand(len(rows), generator=generator) >= FORGET)
            forecast_BHW = head(rows.clean_NCHW, rows.previous_NCHW, known_B, rows.timestep_N)
            loss = functional.mse_loss(log_change(forecast_BHW), log_change(rows.remaining_NHW))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if report is not None:
            report(epoch + 1, epochs)
    return head.eval().requires_grad_(False)


@torch.inference_mode()
def head_correlation(head: RemainingChangeHead, data: Trajectories) -> float:
    """`within_image` of the head's forecasts and the true remaining change."""
    forecasts = [
        head(rows.clean_NCHW, rows.previous_NCHW, rows.known_N, rows.timestep_N)
        for rows in map(data.take, torch.arange(len(data)).split(BATCH))
    ]
    return within_image(torch.cat(forecasts), data.remaining_NHW)


def within_image(first_NHW: torch.Tensor, second_NHW: torch.Tensor) -> float:
    """Pearson's correlation over the positions of an image, mean over the images.

    It is what choosing a region needs. An image in which either does not vary counts as 0.
    """
    first_NP, second_NP = (image.double().flatten(1) for image in (first_NHW, second_NHW))
    first_NP = first_NP - first_NP.mean(dim=1, keepdim=True)
    second_NP = second_NP - second_NP.mean(dim=1, keepdim=True)
    norm_N = first_NP.norm(dim=1) * second_NP.norm(dim=1)
    return float(((first_NP * second_NP).sum(dim=1) / norm_N.clamp_min(1e-12)).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect, fit, measure, save; 2 for a mistake of the user's."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        _train(options, console)
    except UserError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    return 0


def _train(options: argparse.Namespace, console: Console) -> None:
    torch.set_num_threads(options.threads)
    if options.steps < 3:
        raise UserError(f"--steps is {options.steps}; accepted: from 3, so that something lies between")
    names = PromptOptions("--prompts", "--split", "--limit")
    prompts = load_prompts(options.prompts, "train", options.limit, options.seed, names)
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    held_out = round(HELD_OUT * len(texts))
    if held_out < 1:
        raise UserError(f"--prompts gives {len(texts)}; accepted: at least 3, a fifth of them is held out")
    config = EngineConfig(
        solver=options.solver, num_steps=options.steps, guidance_scale=options.guidance, warmup_steps=0
    )
    backbone = load_backbone(BackboneConfig(options.backbone, options.dtype, options.device))
    engine = Engine(backbone, plain_config(config))
    requests = [EpisodeRequest(text, options.seed + row) for row, text in enumerate(texts)]
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console) if console.is_terminal else nullcontext() as bar:

        def stage(description: str) -> Report:
            if bar is None:
                console.print(description)
                return lambda done, total: None
            task = bar.add_task(description, total=None)
            return lambda done, total: bar.update(task, completed=done, total=total)

        fitted = collect_trajectories(engine, requests[held_out:], report=stage("training trajectories"))
        unseen = collect_trajectories(engine, requests[:held_out], report=stage("held-out trajectories"))
        head = fit_region_head(fitted, seed=options.seed, report=stage("fitting"))
    save_region_head(options.file, head, backbone=backbone.identity)
    compared = unseen.take(torch.nonzero(unseen.known_N).flatten())
    change = within_image(local_change(compared.clean_NCHW, compared.previous_NCHW), compared.remaining_NHW)
    console.print(
        f"{options.file}: correlation with the change still to come, within an image, mean over "
        f"{len(compared)} held-out predictions: head {head_correlation(head, compared):.2f}, "
        f"change since the last step {change:.2f}",
        soft_wrap=True,
        highlight=False,
    )


def _parser() -> argparse.ArgumentParser:
    default = EngineConfig()
    parser = argparse.ArgumentParser(prog="python -m actors.region_training", description=__doc__)
    parser.add_argument("file", help="safetensors file to write; give it as engine.refine_head")
    parser.add_argument("--backbone", default="shapes", help="shapes, a diffusers folder, or a hub id")
    parser.add_argument("--dtype", default="float32", help="of the backbone's weights")
    parser.add_argument("--device", default="cpu", help="torch device of the backbone")
    parser.add_argument("--prompts", default="shapes", help="shapes, or a .txt or .jsonl file")
    parser.add_argument("--limit", type=int, default=256, help="how many of the prompts")
    parser.add_argument("--solver", choices=get_args(SolverName), default=default.solver)
    parser.add_argument("--steps", type=int, default=default.num_steps, help="engine.num_steps of its use")
    parser.add_argument(
        "--guidance", type=float, default=default.guidance_scale, help="engine.guidance_scale"
    )
    parser.add_argument("--seed", type=int, default=0, help="fixes noise, weights and order")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    return parser


if __name__ == "__main__":
    sys.exit(main())
