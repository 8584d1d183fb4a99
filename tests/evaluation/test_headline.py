"""The opening sentence must tell the truth, whichever way an evaluation ends."""

import re

import pytest

from evaluation.headline import further_sentences, opening_sentence, outcome
from tests.evaluation import synthetic


def test_a_win_says_how_much_and_no_more_than_the_smaller_saving() -> None:
    summary, _ = synthetic.evaluation(0.655)
    sentence = opening_sentence(summary)
    assert outcome(summary) == "saved"
    claimed = re.fullmatch(r"Saved (\d+)% of the compute: .*\.", sentence)
    assert claimed
    # The front reaches 0.655 at 10 + (0.655 - 0.60) / 0.006 = 19.2 NFE; the policy spends 16.
    assert int(claimed[1]) == pytest.approx(100 * (1 - 16 / 19.2), abs=4)
    needs = summary["hypotheses"]["H2"]["front_needs"]
    shares = [1 - summary["policy"][axis] / needs[axis] for axis in ("nfe", "cost")]
    assert int(claimed[1]) == round(100 * min(shares))


def test_a_win_beyond_every_baseline_gives_no_percentage() -> None:
    summary, _ = synthetic.evaluation(0.75)
    assert opening_sentence(summary).startswith("Saved compute: ")
    assert "%" not in opening_sentence(summary)


def test_a_lead_over_cheaper_baselines_alone_is_no_saving() -> None:
    wanted = synthetic.requests()
    theirs = {"dpmpp-5": synthetic.baseline_rows("dpmpp-5", wanted, 5, 0.45)}
    summary = synthetic.summarised(synthetic.policy_rows(wanted, 0.6), theirs, wanted, 3)
    assert outcome(summary) == "not tested"
    assert opening_sentence(summary).startswith("Nobody knows what was saved: ")
    assert "costs more than each of them" in opening_sentence(summary)


def test_a_tie_is_nothing_saved_even_where_ddim_50_is_matched_at_a_third_of_its_cost() -> None:
    ours = synthetic.policy_rows(synthetic.requests(), 0.652, base_nfe=13)
    theirs = {
        name: synthetic.baseline_rows(name, synthetic.requests(), nfe, quality)
        for name, (nfe, quality) in synthetic.BASELINES.items()
    }
    summary = synthetic.summarised(ours, theirs, synthetic.requests(), 3)
    assert summary["hypotheses"]["H1"]["passed"]
    assert outcome(summary) == "nothing shown"
    assert opening_sentence(summary).startswith("Nothing was saved that 360 images can show: ")
    assert any("DDIM-50’s quality is held within 0.01" in each for each in further_sentences(summary))


def test_a_loss_is_called_worse_and_names_what_beats_it_with_the_interval() -> None:
    summary, _ = synthetic.evaluation(0.5)
    assert outcome(summary) == "worse"
    assert opening_sentence(summary).startswith("Nothing was saved: ")
    assert "worse than fixed schedules" in opening_sentence(summary)
    lead, ddim = further_sentences(summary)
    assert re.search(r"−0\.1\d\d \(95% interval −0\.\d+ to −0\.\d+\)", lead)
    assert "best-of-2@10" in lead
    assert "DDIM-50’s quality is not held" in ddim


def test_a_policy_that_always_does_the_same_is_called_degenerate() -> None:
    summary, _ = synthetic.evaluation(0.6, follow=0, base_nfe=50)
    summary["actions"] = {"continue": 0.98, "stop": 0.02}
    text = " ".join(further_sentences(summary))
    assert "degenerate: 98% of its decisions are “continue”" in text
    assert "nothing was adapted" in text


@pytest.mark.parametrize("quality", [0.5, 0.6, 0.636, 0.65, 0.75])
def test_it_is_one_sentence_and_no_number_is_left_unformatted(quality: float) -> None:
    summary, _ = synthetic.evaluation(quality)
    sentence = opening_sentence(summary)
    assert sentence.endswith(".")
    assert ". " not in sentence
    assert not re.search(r"\d\.\d{4,}", " ".join([sentence, *further_sentences(summary)]))


@pytest.mark.parametrize(
    ("ci95", "passed", "said"),
    [
        ([-0.005, 0.02], True, "is held within 0.01"),
        ([-0.005, 0.02], False, "is held, but above the limit of 30 NFE"),
        ([-0.02, 0.01], False, "is not shown to be held within 0.01"),
        ([-0.05, -0.02], False, "is not held"),
    ],
)
def test_what_is_said_of_ddim_50_follows_its_interval(ci95: list[float], passed: bool, said: str) -> None:
    summary, _ = synthetic.evaluation(0.6, prompts_per_tier=4)
    summary["hypotheses"]["H1"] |= {"ci95": ci95, "passed": passed}
    assert f"DDIM-50’s quality {said}: " in " ".join(further_sentences(summary))


def test_a_judge_that_the_policy_knows_is_named_as_such() -> None:
    summary, _ = synthetic.evaluation(0.655)
    assert not any("flatters" in each for each in further_sentences(summary))
    summary["config"]["quality"] = "image reward"
    assert any("which flatters both" in each for each in further_sentences(summary))
