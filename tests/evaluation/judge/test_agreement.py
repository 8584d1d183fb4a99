"""Wilson's interval against scipy, kappa against scikit-learn, Bradley-Terry against its closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from sklearn.metrics import cohen_kappa_score

from evaluation.judge.agreement import agreement, cohens_kappa, wilson
from evaluation.judge.bradley_terry import Comparison, bradley_terry
from evaluation.metrics.contracts import UnmeasurableError


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (1, 3), (50, 80), (999, 1_000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_is_scipys(successes: int, trials: int, confidence: float) -> None:
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson(successes, trials, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_covers_a_share_in_95_of_100_studies() -> None:
    """Over shares, as its coverage swings with each of them."""
    rng = np.random.default_rng(0)
    shares = rng.uniform(0.05, 0.95, 4_000)
    covered = [
        low <= share <= high
        for share, wins in zip(shares, rng.binomial(60, shares), strict=True)
        for low, high in [wilson(int(wins), 60)]
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def table(counts: dict[tuple[str, str], int]) -> tuple[list[str], list[str]]:
    pairs = [pair for pair, count in counts.items() for _ in range(count)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [
        ({("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}, 0.4),
        ({("yes", "yes"): 45, ("yes", "no"): 15, ("no", "yes"): 25, ("no", "no"): 15}, 0.1304),
        ({("yes", "yes"): 25, ("yes", "no"): 35, ("no", "yes"): 5, ("no", "no"): 35}, 0.2593),
        ({("a", "a"): 3, ("b", "b"): 4}, 1.0),
        ({("a", "b"): 5, ("b", "a"): 5}, -1.0),
        ({("a", "a"): 1, ("a", "b"): 1, ("b", "a"): 1, ("b", "b"): 1}, 0.0),
    ],
)
def test_kappa_of_known_tables(counts: dict[tuple[str, str], int], kappa: float) -> None:
    assert cohens_kappa(*table(counts)) == pytest.approx(kappa, abs=5e-5)


def test_kappa_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        first = rng.choice(["first", "second", "tie"], 40, p=[0.5, 0.3, 0.2])
        second = np.where(rng.random(40) < 0.6, first, rng.choice(["first", "second", "tie"], 40))
        assert cohens_kappa(first.tolist(), second.tolist()) == pytest.approx(
            cohen_kappa_score(first, second)
        )


def test_kappa_has_an_interval_that_covers_the_truth() -> None:
    """A judge copies another in half of the cases and else throws a fair coin: kappa is 0.5."""
    rng = np.random.default_rng(2)
    covered = []
    for study in range(200):
        first = rng.choice(["a", "b"], 120)
        second = np.where(rng.random(120) < 0.5, first, rng.choice(["a", "b"], 120))
        prompts = [f"prompt {index // 2}" for index in range(120)]
        found = agreement(first.tolist(), second.tolist(), prompts, resamples=500, seed=study)
        covered.append(found.low <= 0.5 <= found.high)
    assert 0.89 <= np.mean(covered) <= 0.99  # .95 and three or four standard errors


def test_kappa_of_judges_who_never_differ_from_themselves_does_not_exist() -> None:
    with pytest.raises(UnmeasurableError, match="one answer to everything"):
        cohens_kappa(["tie"] * 5, ["tie"] * 5)
    with pytest.raises(UnmeasurableError, match="no question that both"):
        cohens_kappa([], [])


def duel(wins: int, losses: int, ties: int = 0) -> list[Comparison]:
    scores = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return [Comparison("a", "b", score, f"prompt {index}") for index, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("wins", "losses", "ties"), [(30, 10, 0), (3, 4, 0), (200, 1, 0), (10, 10, 20), (8, 2, 6)]
)
def test_two_players_strength_is_the_log_odds(wins: int, losses: int, ties: int) -> None:
    """Its variance is 1/w + 1/l, where a tie is half of each."""
    won, lost = wins + ties / 2, losses + ties / 2
    fitted = bradley_terry(duel(wins, losses, ties), "fisher").difference("a", "b")
    assert fitted.value == pytest.approx(math.log(won / lost), abs=1e-9)
    assert fitted.high - fitted.low == pytest.approx(2 * 1.959964 * math.sqrt(1 / won + 1 / lost), rel=1e-6)
    own = bradley_terry(duel(wins, losses, ties)).of("a")
    assert own.value == pytest.approx(math.log(won / lost) / 2, abs=1e-9)


def test_independent_comparisons_have_the_same_interval_in_both_ways() -> None:
    fisher, prompts = (
        bradley_terry(duel(60, 40), kind).difference("a", "b") for kind in ("fisher", "prompts")
    )  # type: ignore[arg-type]
    assert prompts.value == fisher.value
    assert prompts.high - prompts.low == pytest.approx(fisher.high - fisher.low, rel=0.01)


def test_comparisons_of_one_prompt_count_once_if_they_all_say_the_same() -> None:
    """Ten copies of every comparison know nothing new: the interval must not shrink by sqrt(10)."""
    once = bradley_terry(duel(60, 40)).difference("a", "b")
    copied = bradley_terry([each for each in duel(60, 40) for _ in range(10)]).difference("a", "b")
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=1e-6)


def test_many_players_are_the_maximum_of_the_likelihood_and_near_the_truth() -> None:
    rng = np.random.default_rng(3)
    truth = {"a": 0.9, "b": 0.2, "c": -0.3, "d": -0.8}
    comparisons = []
    for index in range(3_000):
        first, second = rng.choice(list(truth), 2, replace=False)
        chance = 1 / (1 + math.exp(truth[second] - truth[first]))
        comparisons.append(Comparison(first, second, float(rng.random() < chance), f"prompt {index}"))
    fitted = bradley_terry(comparisons, "fisher")

    def loss(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
        strength = dict(zip(truth, values, strict=True))
        odds = np.array([strength[each.first] - strength[each.second] for each in comparisons])
        scores = np.array([each.score for each in comparisons])
        return float(np.logaddexp(0, odds).sum() - (scores * odds).sum() + values.sum() ** 2)

    best = scipy.optimize.minimize(loss, np.zeros(4), tol=1e-10).x
    for name, value in zip(truth, best, strict=True):
        found = fitted.of(name)
        assert found.value == pytest.approx(value, abs=1e-4)
        assert found.low - 0.1 <= truth[name] <= found.high + 0.1
    assert sum(fitted.of(name).value for name in truth) == pytest.approx(0.0, abs=1e-9)


def test_intervals_of_strengths_cover_the_truth_where_prompts_sway_the_judge() -> None:
    """A prompt favours one side in all of its five images; Fisher's interval would be too narrow."""
    rng = np.random.default_rng(4)
    covered = {"fisher": 0, "prompts": 0}
    for _ in range(300):
        favour_P = rng.choice([0.15, 0.85], 60)
        scores_PS = (rng.random((60, 5)) < favour_P[:, None]).astype(float)
        comparisons = [Comparison("a", "b", scores_PS[p, s], f"{p}") for p in range(60) for s in range(5)]
        for kind in covered:
            found = bradley_terry(comparisons, kind).difference("a", "b")  # type: ignore[arg-type]
            covered[kind] += found.low <= 0 <= found.high
    assert covered["prompts"] / 300 == pytest.approx(0.95, abs=0.04)
    assert covered["fisher"] / 300 < 0.85


def test_strengths_that_would_be_infinite_are_not_estimated() -> None:
    with pytest.raises(UnmeasurableError, match="a and the others never won"):
        bradley_terry(duel(10, 0))
    apart = [*duel(1, 1), Comparison("c", "d", 1.0, "p"), Comparison("d", "c", 1.0, "q")]
    with pytest.raises(UnmeasurableError, match="a, b and the others"):
        bradley_terry(apart)
    with pytest.raises(UnmeasurableError, match="no two methods"):
        bradley_terry([])
