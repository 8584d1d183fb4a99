"""`python -m evaluation.region_selection`: what refining once is worth, for each way to choose where (A4).

Nobody decides here: every image is refined at the same point of the schedule and then goes on to its end,
so that the regions are compared and not a policy's use of them.

Always true here: all variants make the same captions from the same seeds on the embedded world, with the
same fresh noise, and the exact verifier judges; differences are paired by caption.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from actors.backbones.config import BackboneConfig
from actors.backbones.loading import load_backbone
from actors.contracts import Backbone, EpisodeRequest
from actors.engine import Engine, EngineConfig
from actors.errors import UserError
from actors.prompts import PromptOptions, load_prompts
from evaluation.bench import Judge, strict_scores
from evaluation.statistics import Resampling

ACTIONS = ("continue", "stop", "refine")
BATCH = 20
BASE = "no refinement"
SAME_NFE = "the same NFE in steps"


@dataclass(frozen=True)
class Measured:
    """One variant on N requests; coverage: mean share of the image that is refined."""

    quality_N: NDArray[np.float64]
    nfe_N: NDArray[np.int64]
    coverage: float


def variants(config: EngineConfig, head: str | None) -> dict[str, EngineConfig]:
    """What is compared, by name: without refinement, the same NFE in more steps, and each region.

    The whole image, as a grid of one cell, tells what choosing a region adds to denoising again.
    """
    plain = replace(config, actions=("continue", "stop"))
    refine = replace(config, actions=ACTIONS)
    named = {
        BASE: plain,
        SAME_NFE: replace(plain, num_steps=config.num_steps + config.refine_steps),
        "whole image": replace(refine, refine_region="grid", refine_grid=1, refine_share=1.0),
        "attention": replace(refine, refine_region="attention"),
        "change": replace(refine, refine_region="change"),
        "random": replace(refine, refine_region="random"),
        "grid": replace(refine, refine_region="grid"),
    }
    if head is not None:
        named["learned"] = replace(refine, refine_region="learned", refine_head=head)
    return named


def measure(
    backbone: Backbone, config: EngineConfig, requests: Sequence[EpisodeRequest], judge: Judge
) -> Measured:
    """Refine at the first decision, where that is an action, then continue to the end."""
    engine = Engine(backbone, config)
    quality: list[float] = []
    nfe: list[int] = []
    covered: list[float] = []
    for start in range(0, len(requests), BATCH):
        episodes = engine.begin(requests[start : start + BATCH])
        while not all(episode.finished for episode in episodes):
            engine.denoise(episodes)
            for episode in episodes:
                if episode.state == "deciding":
                    first = not episode.decisions
                    engine.act(episode, _choose(engine, engine.legal([episode])[0], first=first))
                    if first and episode.refinement is not None:
                        covered.append(float(episode.refinement.mask_1HW.mean()))
        images = backbone.decode(torch.stack([episode.clean_CHW for episode in episodes]))
        quality += judge(images, [episode.request.prompt for episode in episodes]).tolist()
        nfe += [episode.nfe for episode in episodes]
    coverage = float(np.mean(covered)) if covered else 0.0
    return Measured(np.array(quality), np.array(nfe), coverage)


def _choose(engine: Engine, legal_A: NDArray[np.bool_], *, first: bool) -> int:
    names = engine.action_names
    if first and "refine" in names:
        return names.index("refine")
    return names.index("continue") if legal_A[names.index("continue")] else names.index("stop")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table; 2 for a mistake of the user's."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        table = _compare(options, console)
    except UserError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    Console().print(table)
    return 0


def _compare(options: argparse.Namespace, console: Console) -> Table:
    torch.set_num_threads(options.threads)
    config = EngineConfig(
        num_steps=options.steps,
        guidance_scale=options.guidance,
        warmup_steps=options.at,
        refine_threshold=options.threshold,
        refine_share=options.share,
    )
    if options.at >= options.steps - 1:
        raise UserError(f"--at is {options.at}; accepted: below {options.steps - 1}, where steps are left")
    names = PromptOptions("--prompts", "--split", "--captions")
    prompts = [prompt.text for prompt in load_prompts("shapes", "validation", options.captions, 0, names)]
    requests = [EpisodeRequest(prompt, seed) for prompt in prompts for seed in range(options.seeds)]
    backbone = load_backbone(BackboneConfig())
    resampling = Resampling(len(prompts))
    table = Table("region", "strict", "over no refinement (95%)", "over the same NFE (95%)", "NFE", "refined")
    known: dict[str, NDArray[np.float64]] = {}
    for name, variant in variants(config, options.head).items():
        console.print(name, highlight=False)
        measured = measure(backbone, variant, requests, strict_scores)
        known[name] = measured.quality_N.reshape(len(prompts), -1).mean(axis=1)
        differences = [
            _difference(resampling, known[name] - known[other]) if other in known and other != name else ""
            for other in (BASE, SAME_NFE)
        ]
        share = f"{measured.coverage:.0%}" if measured.coverage else ""
        table.add_row(name, f"{known[name].mean():.3f}", *differences, f"{measured.nfe_N.mean():.1f}", share)
    return table


def _difference(resampling: Resampling, differences_P: NDArray[np.float64]) -> str:
    estimate = resampling.mean(differences_P)
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"


def _parser() -> argparse.ArgumentParser:
    default = EngineConfig()
    parser = argparse.ArgumentParser(prog="python -m evaluation.region_selection", description=__doc__)
    parser.add_argument("--head", help="file of `python -m actors.region_training`; else learned is left out")
    parser.add_argument("--captions", type=int, default=40, help="validation captions")
    parser.add_argument("--seeds", type=int, default=2, help="images of each")
    parser.add_argument("--steps", type=int, default=7, help="of DPM-Solver++")
    parser.add_argument("--at", type=int, default=3, help="schedule point where it is refined")
    parser.add_argument("--guidance", type=float, default=3.0, help="engine.guidance_scale")
    parser.add_argument("--threshold", type=float, default=default.refine_threshold)
    parser.add_argument("--share", type=float, default=default.refine_share, help="of the cells")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    return parser


if __name__ == "__main__":
    sys.exit(main())
