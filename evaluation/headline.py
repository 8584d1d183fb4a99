"""The sentences a report opens with: what was saved, or that nothing was.

Always true here: they follow from the summary's numbers alone. "Saved" is said only if H2 passed, that is if
the policy beats every fixed baseline at its own cost, looks included; being cheaper than DDIM-50 is no
saving where a fixed schedule is just as cheap. A difference is never given without its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from evaluation.config import QUALITIES
from evaluation.hypotheses import H1_REFERENCES

Outcome = Literal["saved", "not tested", "nothing shown", "worse"]

DEGENERATE_SHARE = 0.97


def outcome(summary: Mapping[str, Any]) -> Outcome:
    """What H2 says: saved, not tested at its cost, nothing shown (the interval holds zero), or worse."""
    hypothesis = summary["hypotheses"]["H2"]
    if hypothesis["passed"] is None:
        return "not tested"
    if hypothesis["passed"]:
        return "saved"
    return "worse" if hypothesis["ci95"][1] < 0 else "nothing shown"


def opening_sentence(summary: Mapping[str, Any]) -> str:
    """One sentence: what the policy saved, or that nothing was saved."""
    policy, needs = summary["policy"], summary["hypotheses"]["H2"]["front_needs"]
    looks = ", looks included," if policy["looks"] > 0 else ""
    spent = {"nfe": f"{policy['nfe']:.1f} NFE an image", "cost": f"{policy['cost']:.1f} NFE an image{looks}"}
    match outcome(summary):
        case "saved" if None not in needs.values():
            axis = min(needs, key=lambda axis: 1 - policy[axis] / needs[axis])
            return (
                f"Saved {1 - policy[axis] / needs[axis]:.0%} of the compute: the policy spends {spent[axis]}"
                f" where fixed schedules need {needs[axis]:.1f} for the same quality."
            )
        case "saved":
            return (
                f"Saved compute: with {spent['cost']} the policy is better than every fixed schedule"
                " measured, whatever that one costs."
            )
        case "not tested":
            return (
                f"Nobody knows what was saved: with {spent['cost']} the policy is better than fixed"
                " schedules, and costs more than each of them that was measured."
            )
        case "nothing shown":
            return (
                f"Nothing was saved that {summary['config']['images']} images can show: with {spent['cost']}"
                " the policy is not measurably better than fixed schedules at its cost."
            )
        case "worse":
            return (
                f"Nothing was saved: with {spent['cost']} the policy is worse than fixed schedules at its"
                " cost."
            )


def further_sentences(summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know next: the lead, the long schedule, whether the policy decides at all."""
    policy, hypothesis = summary["policy"], summary["hypotheses"]["H2"]
    sentences = [
        f"Its {summary['config']['quality']} is {policy['quality']:.3f}, {signed(hypothesis['estimate'])}"
        f" {interval(hypothesis['ci95'])} against the hardest of them ({hypothesis['against']})."
    ]
    if summary["config"]["quality"] == QUALITIES["image_reward"]:
        sentences.append(
            "It is decided by the reward model that looks and searches choose by, which flatters both;"
            " evaluation.quality names another judge."
        )
    if summary["hypotheses"]["H1"]["estimate"] is not None:
        sentences.append(_against_long_schedule(summary))
    top, share = max(summary["actions"].items(), key=lambda item: float(item[1]))
    if share > DEGENERATE_SHARE:
        sentences.append(f"The policy is degenerate: {share:.0%} of its decisions are “{top}”.")
    if policy["nfe_sd"] == 0:
        sentences.append("Every image got the same number of denoiser calls: nothing was adapted.")
    return sentences


def interval(ci95: Sequence[float]) -> str:
    """An interval of a difference, for running text."""
    return f"(95% interval {signed(ci95[0])} to {signed(ci95[1])})"


def signed(difference: float) -> str:
    """A difference with its sign, in three decimals and with a proper minus."""
    return f"{difference:+.3f}".replace("-", "−")


def _against_long_schedule(summary: Mapping[str, Any]) -> str:
    policy, hypothesis = summary["policy"], summary["hypotheses"]["H1"]
    reference = summary["baselines"][hypothesis["against"]]
    difference = f"{signed(hypothesis['estimate'])} {interval(hypothesis['ci95'])}"
    cost = (
        f"{policy['nfe']:.1f} of its {reference['nfe']:.0f} NFE and {policy['seconds']:.3f} of its"
        f" {reference['seconds']:.3f} seconds an image"
    )
    if hypothesis["passed"]:
        verdict = f"is held within {hypothesis['margin']:g}"
    elif hypothesis["ci95"][0] >= -hypothesis["margin"]:
        verdict = f"is held, but above the limit of {hypothesis['nfe_limit']:g} NFE"
    elif hypothesis["ci95"][1] >= 0:
        verdict = f"is not shown to be held within {hypothesis['margin']:g}"
    else:
        verdict = "is not held"
    return f"{H1_REFERENCES[hypothesis['against']]}’s quality {verdict}: {difference}, for {cost}."
