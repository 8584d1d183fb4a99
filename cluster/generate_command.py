"""`addiffusion generate`: one picture, and the decisions that led to it.

Always true here: the picture is made by the engine, observation and actions the policy was trained with; it
appears under its name when it is whole, or not at all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from actors.errors import UserError
from actors.files import written_aside
from actors.prompts import MAX_WORDS
from cluster.runs import find_policy, newest_policy, settings_by_name, settings_of

if TYPE_CHECKING:
    from actors.contracts import EpisodeResult, Images
    from evaluation.config import EvaluationConfig


def generate_picture(
    prompt: str, *, model: str | None, seed: int, out: Path, max_nfe: int | None, runs_dir: Path
) -> None:
    """Write the picture to `out` (its suffix says the format) and print a table of the decisions."""
    check_request(prompt, seed, max_nfe)
    check_picture_path(out)
    if model is None:
        policy_dir = newest_policy(runs_dir)
        config = settings_of(policy_dir).evaluation
    else:
        policy_dir = find_policy(model, runs_dir)
        config = settings_by_name(model, runs_dir).evaluation
    result, image_HWC = _paint(policy_dir, config, prompt, seed, max_nfe)
    write_picture(image_HWC, out)
    Console().print(decision_table(result))
    typer.echo(
        f"{out}: NFE {result.nfe}, looks {result.looks}, attempts {result.attempts} (policy: {policy_dir})"
    )


def check_request(prompt: str, seed: int, max_nfe: int | None) -> None:
    """Raise UserError for what no policy could paint."""
    words = len(prompt.split())
    if not 1 <= words <= MAX_WORDS:
        raise UserError(f"PROMPT has {words} words: give 1 to {MAX_WORDS}")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed={seed}: give a whole number from 0 to 2^63 - 1")
    if max_nfe is not None and max_nfe < 1:
        raise UserError(f"--max-nfe={max_nfe}: give a whole number from 1")


def check_picture_path(out: Path) -> None:
    """Raise UserError unless `out` is a picture in a folder that exists and can be written to."""
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise UserError(f"--out={out}: give a file name that ends in .png, .jpg or .webp")
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"--out={out}: give a file in a folder that exists and can be written to")


def write_picture(image_HWC: Images, out: Path) -> None:
    """Write aside and rename; what could not be written whole is removed."""
    with written_aside(out) as aside:
        Image.fromarray(image_HWC).save(aside, Image.registered_extensions()[out.suffix.lower()])


def decision_table(result: EpisodeResult) -> Table:
    """One line a decision: where in the schedule, what had been spent, what was seen and decided."""
    table = Table("attempt", "step", "timestep", "NFE", "looked-at score", "decision", box=None)
    for decision in result.decisions:
        score = "" if decision.image_reward is None else f"{decision.image_reward:.2f}"
        table.add_row(
            str(decision.attempt),
            str(decision.step_index),
            f"{decision.timestep:.0f}",
            str(decision.nfe),
            score,
            decision.action,
        )
    return table


def _paint(
    policy_dir: Path, config: EvaluationConfig, prompt: str, seed: int, max_nfe: int | None
) -> tuple[EpisodeResult, Images]:
    from actors.contracts import EpisodeRequest
    from actors.rollout import rollout
    from evaluation.bench import bench_recipe
    from evaluation.methods import read_policy

    policy = read_policy(policy_dir, greedy=True, seed=seed)
    bench = bench_recipe(policy.trained.backbone, config)()
    opened = policy.open(bench)
    (result,) = rollout(
        opened.engine,
        opened.decider,
        opened.observer,
        [EpisodeRequest(prompt, seed, max_nfe=max_nfe)],
        slots=1,
        scorer=opened.scorer,
    )
    return result, bench.backbone.decode(result.latents_CHW[None])[0]
