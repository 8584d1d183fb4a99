"""What a sweep came to: one row a variant, compared with the sweep's reference, as a paper would print it.

Always true here: a row's means are over prompts of means over noises and training seeds; differences are
paired by prompt, noise and training seed, and their intervals are over prompts, so they speak of these
trainings; p-values are Holm's over all comparisons of the table, a training under two names counted once; a
trial that failed is in the table, with its error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics import Estimate, Resampling, holm
from tune_configs.ledger import Outcome
from tune_configs.objective import better
from tune_configs.plan import TrialSpec
from tune_configs.sweep_config import METRICS, Scalar
from tune_configs.sweep_files import Sweep

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One variant.

    trials: ids, one a training seed; finished, planned: how many; stopped: by the scheduler; iterations: of
    the longest trial; numbers: utility, quality, nfe and cost, of finished trials as measured, where none
    finished as watched last; interval: 95%, of the metric that trials are ranked by; seed_sd: of that metric
    over training seeds; difference: to the reference, p_holm: adjusted; seconds: mean of a trial; ended: how
    finished trainings ended, as by a guard; errors: of trials that failed.
    """

    label: str
    trials: tuple[str, ...]
    finished: int
    stopped: int
    planned: int
    iterations: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    seed_sd: float | None = None
    difference: Estimate | None = None
    p_holm: float | None = None
    seconds: float | None = None
    ended: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    values: Mapping[str, Scalar] = field(default_factory=dict)
    is_reference: bool = False

    @property
    def part(self) -> str:
        """The part of the sweep that it belongs to."""
        return self.label.partition("/")[0]

    @property
    def variant(self) -> str:
        """Its name without its part."""
        return self.label.partition("/")[2]

    @property
    def status(self) -> str:
        """In words: finished, stopped, failed, or how many of how many; missing where nothing has ended."""
        failed = len(self.errors)
        if self.finished == self.planned:
            return ", ".join(["finished", *sorted(set(self.ended) - {"finished"})])
        if self.stopped == self.planned:
            return "stopped"
        if failed == self.planned:
            return "failed"
        if not (self.finished or self.stopped or failed):
            return "missing"
        counts = {"finished": self.finished, "stopped": self.stopped, "failed": failed}
        return ", ".join(f"{count} of {self.planned} {name}" for name, count in counts.items() if count)


def table(sweep: Sweep, specs: Iterable[TrialSpec], outcomes: Mapping[str, Outcome]) -> list[Row]:
    """The rows of all variants, in the order of the plan; specs: the trials that were planned."""
    planned = _by_label(specs)
    found = {
        label: [outcomes[one.id] for one in group if one.id in outcomes] for label, group in planned.items()
    }
    references = {
        part: f"{part}/{config.reference}"
        for part, config in sweep.parts.items()
        if config.reference is not None
    }
    compared: dict[str, Estimate] = {}
    for label, group in found.items():
        reference = references.get(label.partition("/")[0])
        if reference is not None and reference != label and reference in found:
            difference = _difference(sweep, group, found[reference])
            if difference is not None:
                compared[label] = difference
    adjusted = _adjusted(compared, planned)
    return [
        _row(
            sweep,
            label,
            planned[label],
            group,
            compared.get(label),
            adjusted.get(label),
            label in references.values(),
        )
        for label, group in found.items()
    ]


def best_variants(sweep: Sweep, rows: Sequence[Row], count: int) -> list[Row]:
    """The variants with the best metric, the best first, of those with all trials finished.

    Of labels of the same trainings the first. Fixed schedules are none of the sweep's variants.
    """
    metric = sweep.config.metric
    done = [row for row in rows if row.finished == row.planned and row.part in sweep.parts]
    ranked = sorted(done, key=lambda row: better(metric) * row.numbers[metric], reverse=True)
    distinct = {row.trials: row for row in reversed(ranked)}
    return [row for row in ranked if row in distinct.values()][:count]


def _row(
    sweep: Sweep,
    label: str,
    specs: Sequence[TrialSpec],
    outcomes: Sequence[Outcome],
    difference: Estimate | None,
    p_holm: float | None,
    is_reference: bool,
) -> Row:
    finished = [one for one in outcomes if one.measured is not None]
    counted = finished or [one for one in outcomes if one.watched and one.status != "failed"]
    metric = sweep.config.metric
    estimate = None
    if finished:
        estimate = _resampling(sweep, finished[0]).mean(_by_prompt(finished, metric))
    return Row(
        label=label,
        trials=tuple(spec.id for spec in specs),
        finished=len(finished),
        stopped=sum(one.status == "stopped" for one in outcomes),
        planned=len(specs),
        iterations=max((one.iterations for one in outcomes), default=0),
        numbers={name: float(_metrics(counted, name).mean()) for name in METRICS} if counted else {},
        interval=None if estimate is None else (estimate.low, estimate.high),
        seed_sd=float(_metrics(finished, metric).std(ddof=1)) if len(finished) > 1 else None,
        difference=difference,
        p_holm=p_holm,
        seconds=float(np.mean([one.seconds for one in counted])) if counted else None,
        ended=tuple(one.ended or "finished" for one in finished),
        errors=tuple(one.error or "" for one in outcomes if one.status == "failed"),
        values=(outcomes[0].spec if outcomes else specs[0]).values,
        is_reference=is_reference,
    )


def _difference(sweep: Sweep, ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> Estimate | None:
    """Ours minus theirs in the sweep's metric, over the training seeds that both have finished."""
    by_seed = [{one.spec.seed: one for one in group if one.measured is not None} for group in (ours, theirs)]
    seeds = sorted(set(by_seed[0]) & set(by_seed[1]))
    if not seeds:
        return None
    first, second = ([group[seed] for seed in seeds] for group in by_seed)
    metric = sweep.config.metric
    return _resampling(sweep, first[0]).mean(_by_prompt(first, metric) - _by_prompt(second, metric))


def _adjusted(
    compared: Mapping[str, Estimate], planned: Mapping[str, Sequence[TrialSpec]]
) -> dict[str, float]:
    """Holm's p of every comparison. Labels of the same trainings in the same part are one comparison."""
    same = {label: (label.partition("/")[0], tuple(spec.id for spec in planned[label])) for label in compared}
    first = {same[label]: label for label in reversed(list(compared))}
    distinct = list(first.values())
    p_holm = (
        dict(zip(distinct, holm([compared[label].p for label in distinct]), strict=True)) if distinct else {}
    )
    return {label: p_holm[first[same[label]]] for label in compared}


def _metrics(outcomes: Sequence[Outcome], name: str) -> Floats:
    """[trials]: one metric of each, which all of them have."""
    values = [value for one in outcomes if (value := one.metric(name)) is not None]
    assert len(values) == len(outcomes), f"a trial without {name}"
    return np.array(values)


def _by_prompt(outcomes: Sequence[Outcome], metric: str) -> Floats:
    """[P]: means over training seeds."""
    return np.mean([one.measured.by_prompt(metric) for one in outcomes if one.measured is not None], axis=0)


def _resampling(sweep: Sweep, outcome: Outcome) -> Resampling:
    assert outcome.measured is not None
    judge, tiers = sweep.config.judge, outcome.measured.tiers
    return Resampling(len(tiers), judge.resamples, judge.seed, tuple(tier or "" for tier in tiers))


def _by_label(specs: Iterable[TrialSpec]) -> dict[str, list[TrialSpec]]:
    planned: dict[str, list[TrialSpec]] = {}
    for spec in specs:
        for label in spec.labels:
            planned.setdefault(label, []).append(spec)
    return planned
