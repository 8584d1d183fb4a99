"""`addiffusion judge`: a vision-language model says which method's images are better.

Always true here: what it will cost is printed before the first question, and what costs more than --max-usd,
or nobody knows how much, is not started. Answers are kept, so that the same command goes on after an
interruption and pays for nothing twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from actors.errors import UserError
from cluster.runs import check_writable
from evaluation.judge.config import PRESETS, JudgeConfig
from tune_configs.conversion import nearest

ANSWERS_FILE = "answers.jsonl"


def judges_of(
    presets: Sequence[str],
    base_url: str | None,
    model: str | None,
    key_variable: str | None,
    input_usd: float | None = None,
    output_usd: float | None = None,
) -> list[JudgeConfig]:
    """The judges that the options name; a model may be another one at a single preset's address.

    input_usd, output_usd: what a single judge charges, in US dollars a million tokens.
    """
    judges = _named(presets, base_url, model, key_variable)
    if input_usd is None and output_usd is None:
        return judges
    if len(judges) > 1:
        raise UserError("--input-usd, --output-usd: give them with one judge")
    for option, price in (("--input-usd", input_usd), ("--output-usd", output_usd)):
        if price is not None and not 0 <= price < math.inf:
            raise UserError(f"{option}={price:g}: give US dollars a million tokens, at least 0")
    (judge,) = judges
    return [
        replace(
            judge,
            input_usd=judge.input_usd if input_usd is None else input_usd,
            output_usd=judge.output_usd if output_usd is None else output_usd,
        )
    ]


def _named(
    presets: Sequence[str], base_url: str | None, model: str | None, key_variable: str | None
) -> list[JudgeConfig]:
    for name in presets:
        if name not in PRESETS:
            raise UserError(f"--judge={name}: give one of {', '.join(PRESETS)}{nearest(name, PRESETS)}")
    if base_url is not None:
        if presets:
            raise UserError("--base-url and --judge: give one of them")
        if model is None:
            raise UserError("--model: give the name of a model at --base-url")
        return [JudgeConfig(model, base_url, key_variable)]
    judges = [PRESETS[name] for name in presets]
    if not judges:
        raise UserError(f"--judge: give one of {', '.join(PRESETS)}, or --base-url and --model")
    if model is not None:
        if len(judges) > 1:
            raise UserError("--model: give it with one --judge")
        # Another model has another price.
        judges = [replace(judges[0], model=model, input_usd=None, output_usd=None)]
    return [replace(judge, key_variable=key_variable or judge.key_variable) for judge in judges]


def judge_images(
    images: Sequence[Path],
    judges: Sequence[JudgeConfig],
    *,
    methods: Sequence[str],
    pairs: int | None,
    seed: int,
    at_once: int,
    max_usd: float,
    dry_run: bool,
    out: Path,
) -> int:
    """Judge, print the tallies, write judge.json. 1 if questions were left without an answer."""
    from evaluation.judge.answers import AnswerFile
    from evaluation.judge.endpoint import ChatEndpoint
    from evaluation.judge.judging import draw_pairs, estimate_cost, judge_pairs
    from evaluation.judge.summary import summarise, write_summary
    from evaluation.metrics.images import read_sets
    from evaluation.progress import progress_bar

    for name, value in (("--pairs", pairs), ("--at-once", at_once)):
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: give a whole number of at least 1")
    if not max_usd >= 0:
        raise UserError(f"--max-usd={max_usd:g}: give US dollars, at least 0, or inf for no limit")
    check_writable("--out", out, folder=True)
    sets = [each for path in images for each in read_sets(path)]
    for method in methods:
        if method not in (found := [each.name for each in sets]):
            raise UserError(f"--method={method}: give one of {', '.join(found)}{nearest(method, found)}")
    drawn = draw_pairs([each for each in sets if not methods or each.name in methods], pairs, seed)
    with ExitStack() as stack:
        answers = stack.enter_context(AnswerFile(out / ANSWERS_FILE))
        endpoints = [] if dry_run else [stack.enter_context(ChatEndpoint(judge)) for judge in judges]
        costs = [estimate_cost(drawn, judge, answers) for judge in judges]
        for judge, cost in zip(judges, costs, strict=True):
            typer.echo(f"{judge.model}: {cost}")
        known = sum(cost.usd for cost in costs if cost.usd is not None)
        if dry_run:
            return 0
        unknown = [
            judge.model
            for judge, cost in zip(judges, costs, strict=True)
            if cost.usd is None and cost.questions
        ]
        if unknown and max_usd < math.inf:
            raise UserError(
                f"--max-usd={max_usd:g}: nobody knows what {unknown[0]} charges; give --input-usd and"
                " --output-usd (0 where it is free), or --max-usd inf for no limit"
            )
        if known > max_usd:
            raise UserError(
                f"--max-usd={max_usd:g}: it would be about ${known:.2f}; raise it, or give fewer --pairs"
            )
        judged = {}
        for endpoint in endpoints:
            with progress_bar() as show:
                judged[endpoint.judge.model] = judge_pairs(
                    drawn,
                    endpoint,
                    answers,
                    at_once=at_once,
                    progress=lambda done, failed, total: show(f"{failed} failed", done + failed, total),
                )
    summary = summarise(judged)
    _print(summary)
    typer.echo(f"summary: {write_summary(out, summary)}")
    return 1 if any(each.failed for each in judged.values()) else 0


def _print(summary: Mapping[str, Any]) -> None:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for header in ("judge", "first", "second", "wins", "ties", "losses", "unjudged", "win rate", "swayed"):
        table.add_column(header)
    for name, said in summary["judges"].items():
        for pair in said["pairs"]:
            rate = pair["win_rate"]
            low, high = rate["ci95"] if rate else (None, None)
            table.add_row(
                name,
                pair["first"],
                pair["second"],
                *(str(pair[key]) for key in ("wins", "ties", "losses", "unjudged")),
                f"{rate['estimate']:.3f} ({low:.3f} to {high:.3f})" if rate else "",
                "" if pair["swayed"] is None else f"{pair['swayed']:.0%}",
            )
    Console(width=200, soft_wrap=True).print(table)
    for name, said in summary["judges"].items():
        if said["failed_questions"]:
            typer.echo(
                f"{name}: {said['failed_questions']} questions without an answer, the last one:"
                f" {said['last_error']}; the same command asks them again",
                err=True,
            )
    for names, kappa in summary["kappa"].items():
        if "missing" in kappa:
            typer.echo(f"kappa of {names}: missing: {kappa['missing']}")
        else:
            low, high = kappa["ci95"]
            typer.echo(f"kappa of {names}: {kappa['estimate']:.2f} ({low:.2f} to {high:.2f})")
