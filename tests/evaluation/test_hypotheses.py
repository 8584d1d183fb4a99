"""The verdicts on made-up evaluations whose truth is known."""

import numpy as np
import pytest
import scipy.stats

from actors.contracts import EpisodeRequest
from evaluation.hypotheses import FEWEST_PROMPTS, cost_follows_prompt, equal_cost, equal_quality, tier_order
from evaluation.rows import MethodTable, tabulate
from evaluation.statistics import Resampling
from tests.evaluation import synthetic

WANTED = synthetic.requests()
TIERS = [request.tier for request in WANTED[::3]]
RESAMPLING = Resampling(len(TIERS), 1_000, 0, tuple(str(tier) for tier in TIERS))
BASELINES = {
    name: tabulate(name, synthetic.baseline_rows(name, WANTED, nfe, quality), WANTED)
    for name, (nfe, quality) in synthetic.BASELINES.items()
}


def policy(quality: float, base_nfe: int = 10, follow: int = 2) -> MethodTable:
    rows = synthetic.policy_rows(WANTED, quality, base_nfe=base_nfe, follow=follow)
    return tabulate("policy", rows, WANTED)


@pytest.mark.parametrize(
    ("quality", "base_nfe", "passed"), [(0.655, 10, True), (0.63, 10, False), (0.70, 26, False)]
)
def test_h1_needs_both_the_quality_of_ddim_50_and_the_nfe_limit(
    quality: float, base_nfe: int, passed: bool
) -> None:
    verdict = equal_quality(policy(quality, base_nfe), BASELINES, RESAMPLING, margin=0.01, nfe_limit=30)
    assert verdict["passed"] is passed
    assert verdict["estimate"] == pytest.approx(quality - 0.65, abs=0.008)
    assert verdict["ci95"][0] < verdict["estimate"] < verdict["ci95"][1]


@pytest.mark.parametrize("margin", [0.0, 0.01, 0.03])
def test_the_p_of_h1_is_that_of_its_own_claim(margin: float) -> None:
    """Of being worse by more than the margin (Student's, one-sided), not of there being no difference."""
    ours = policy(0.645)
    verdict = equal_quality(ours, BASELINES, RESAMPLING, margin=margin, nfe_limit=30)
    difference_P = ours.by_prompt("quality") - BASELINES["ddim-50"].by_prompt("quality")
    expected = scipy.stats.ttest_1samp(difference_P, -margin, alternative="greater").pvalue
    assert verdict["p"] == pytest.approx(expected, abs=0.02)
    assert verdict["passed"] is (verdict["p"] < 0.025)


def test_few_prompts_show_nothing() -> None:
    """However sure the bootstrap is of them."""
    few = WANTED[: 3 * (FEWEST_PROMPTS - 1)]
    resampling = Resampling(len(few) // 3, 1_000, 0)
    table = tabulate("policy", synthetic.policy_rows(few, 0.9, base_nfe=10, follow=2), few)
    baselines = {
        name: tabulate(name, synthetic.baseline_rows(name, few, nfe, quality), few)
        for name, (nfe, quality) in synthetic.BASELINES.items()
    }
    verdicts = (
        equal_quality(table, baselines, resampling, 0.01, 30),
        equal_cost(table, baselines, resampling),
    )
    for verdict in verdicts:
        assert verdict["ci95"][0] > 0
        assert verdict["passed"] is False


def test_h1_is_untested_and_not_passed_without_ddim_50() -> None:
    verdict = equal_quality(policy(0.9), {"dpmpp-5": BASELINES["dpmpp-5"]}, RESAMPLING, 0.01, 30)
    assert verdict["passed"] is None
    assert verdict["estimate"] is None
    assert "neither ddim-50 nor euler-50 was run" in verdict["statement"]


def test_h1_of_a_flow_model_is_against_euler_50() -> None:
    long = {"euler-50": BASELINES["dpmpp-5"]}
    verdict = equal_quality(policy(0.9), long, RESAMPLING, 0.01, 30)
    assert verdict["against"] == "euler-50"
    assert "Euler-50" in verdict["statement"]


@pytest.mark.parametrize(("quality", "passed"), [(0.66, True), (0.636, False), (0.62, False), (0.55, False)])
def test_h2_asks_for_more_than_the_front_at_the_policys_own_cost(quality: float, passed: bool) -> None:
    verdict = equal_cost(policy(quality), BASELINES, RESAMPLING)
    # 0.62 beats dpmpp-10, the best single baseline at 16 NFE, and yet not the front between 10 and 20.
    assert verdict["passed"] is passed
    assert verdict["estimate"] == pytest.approx(quality - 0.636, abs=0.01)
    single = next(one for one in verdict["comparisons"] if one["against"] == "dpmpp-10")
    assert single["estimate"] == pytest.approx(quality - 0.60, abs=0.01)
    assert verdict["ci95"][0] == min(one["ci95"][0] for one in verdict["comparisons"])


def test_h2_counts_looks_as_cost() -> None:
    ours = policy(0.66)
    by_axis = {
        one["axis"]: one["estimate"]
        for one in equal_cost(ours, BASELINES, RESAMPLING)["comparisons"]
        if "+" in one["against"]
    }
    # 0.3 NFE more for the policy, 0.6 more for best-of-2: the bar at the policy's cost comes out lower.
    slope = (0.66 - 0.60) / 10
    bar_nfe = 0.60 + slope * 6
    bar_cost = 0.60 + (0.66 - 0.60) / 10.6 * 6.3
    assert by_axis["nfe"] - by_axis["cost"] == pytest.approx(bar_cost - bar_nfe, abs=0.002)


def test_h2_reports_what_the_front_needs_for_the_policys_quality() -> None:
    needs = equal_cost(policy(0.63), BASELINES, RESAMPLING)["front_needs"]
    assert needs["nfe"] == pytest.approx(15.0, abs=0.8)
    assert equal_cost(policy(0.8), BASELINES, RESAMPLING)["front_needs"] == {"nfe": None, "cost": None}


def test_h2_is_calibrated_where_the_policy_is_a_coin_flip_between_two_baselines() -> None:
    # Such a policy lies on the front; claiming that it is better must be as rare as the level says.
    resampling = Resampling(40, 300)
    claims = 0
    for run in range(150):
        rng = np.random.default_rng(run)
        effect_P1 = rng.normal(0.6, 0.1, (40, 1))

        def table(name: str, nfe: np.ndarray, mean: np.ndarray) -> MethodTable:
            quality = effect_P1 + mean + rng.normal(0, 0.1, (40, 2))  # noqa: B023
            return MethodTable(name, quality, nfe, nfe, 0 * nfe, nfe, nfe)

        full = np.ones((40, 2))
        cheap, dear = table("cheap", 10 * full, 0 * full), table("dear", 20 * full, 0.1 * full)
        flip = rng.random((40, 2)) < 0.5
        ours = table("policy", np.where(flip, 20.0, 10.0), np.where(flip, 0.1, 0.0))
        claims += equal_cost(ours, {"cheap": cheap, "dear": dear}, resampling)["passed"]
    # Two-sided level .05, one side of it is a claim: 3.75 expected of 150, four standard errors are 7.7.
    assert claims <= 11


def test_h2_is_biased_against_a_policy_where_many_baselines_are_alike() -> None:
    """The best of many measured means is too high: what is reported is at most what is true."""
    rng = np.random.default_rng(0)
    leads = []
    for _ in range(60):
        effect_P1 = rng.normal(0.6, 0.1, (40, 1))

        def table(name: str, nfe: float) -> MethodTable:
            cost = np.full((40, 2), nfe)
            quality = effect_P1 + rng.normal(0, 0.1, (40, 2))  # noqa: B023
            return MethodTable(name, quality, cost, cost, 0 * cost, cost, cost)

        baselines = {f"dpmpp-{nfe}": table(f"dpmpp-{nfe}", nfe) for nfe in (5, 7, 10, 15, 20)}
        leads.append(equal_cost(table("policy", 11), baselines, Resampling(40, 200))["estimate"])
    assert np.mean(leads) < 0


def test_h2_is_not_tested_where_the_policy_costs_more_than_every_baseline() -> None:
    """A lead over what is cheaper says nothing about equal cost; being worse than that says enough."""
    cheap = {name: BASELINES[name] for name in ("dpmpp-5", "dpmpp-10")}
    ahead = equal_cost(policy(0.66), cheap, RESAMPLING)
    assert ahead["ci95"][0] > 0
    assert ahead["passed"] is None
    assert "Not tested: the policy spends 16.0 NFE, the dearest baseline 10.0" in ahead["statement"]
    assert equal_cost(policy(0.55), cheap, RESAMPLING)["passed"] is False
    as_dear = {**cheap, "ddim-50": BASELINES["ddim-50"]}
    assert equal_cost(policy(0.66), as_dear, RESAMPLING)["passed"] is True


def noise_followers(prompt_effect: float, seeds: int, run: int) -> tuple[MethodTable, dict[str, MethodTable]]:
    """A policy that spends twice as much where its noise goes wrong, which goes wrong for baselines too."""
    rng = np.random.default_rng(run)
    luck_PS = prompt_effect * rng.normal(size=(100, 1)) + rng.normal(size=(100, seeds))

    def table(name: str, nfe_PS: np.ndarray) -> MethodTable:
        quality_PS = luck_PS + rng.normal(0, 0.5, luck_PS.shape)
        return MethodTable(name, quality_PS, nfe_PS, nfe_PS, 0 * nfe_PS, nfe_PS, nfe_PS)

    baselines = {name: table(name, np.full(luck_PS.shape, 10.0)) for name in ("dpmpp-10", "ddim-50")}
    return table("policy", np.where(luck_PS < -0.5, 14.0, 7.0)), baselines


def test_h3_is_not_passed_by_following_the_noise_that_policy_and_baselines_share() -> None:
    passed = [
        cost_follows_prompt(*noise_followers(0.0, 3, run), Resampling(100, 300), [None] * 100)["passed"]
        for run in range(120)
    ]
    assert sum(passed) <= 8  # 2.5% are 3 of 120, three standard errors more are 8.1
    follows = cost_follows_prompt(*noise_followers(1.0, 3, 0), Resampling(100, 300), [None] * 100)
    assert follows["passed"] is True


def test_h3_knows_no_difficulty_of_prompts_with_one_seed() -> None:
    ours, theirs = noise_followers(1.0, 1, 0)
    without = cost_follows_prompt(ours, theirs, Resampling(100, 300), [None] * 100)
    assert without["passed"] is None
    assert "one seed each" in without["statement"]
    tiers = [str(tier) for tier in range(1, 5) for _ in range(25)]
    assert set(cost_follows_prompt(ours, theirs, Resampling(100, 300), tiers)["correlations"]) == {"tier"}


def test_h3_passes_only_if_cost_rises_with_tier_and_difficulty() -> None:
    follows = cost_follows_prompt(policy(0.65, follow=2), BASELINES, RESAMPLING, TIERS)
    assert follows["passed"]
    assert set(follows["correlations"]) == {"tier", "difficulty"}
    against = cost_follows_prompt(policy(0.65, base_nfe=20, follow=-2), BASELINES, RESAMPLING, TIERS)
    assert not against["passed"]
    assert against["estimate"] < -0.5
    constant = cost_follows_prompt(policy(0.65, follow=0), BASELINES, RESAMPLING, TIERS)
    assert not constant["passed"]
    assert constant["estimate"] == 0


def test_h3_takes_names_for_groups_without_an_order() -> None:
    """Tasks of a benchmark, sorted by name, would be an order that nobody meant."""
    tasks = [f"task {tier}" for tier in TIERS]
    named = cost_follows_prompt(policy(0.65, follow=2), BASELINES, RESAMPLING, tasks)
    assert set(named["correlations"]) == {"difficulty"}
    assert tier_order(["10", "position", "2", "counting", "2"]) == ["2", "10", "counting", "position"]


def test_h3_goes_by_difficulty_alone_where_prompts_have_no_tier() -> None:
    verdict = cost_follows_prompt(policy(0.65), BASELINES, RESAMPLING, [None] * len(TIERS))
    assert list(verdict["correlations"]) == ["difficulty"]


def test_bounds_are_in_the_table_and_in_no_verdict() -> None:
    ours = synthetic.policy_rows(WANTED, 0.66)
    theirs = {
        name: synthetic.baseline_rows(name, WANTED, nfe, quality)
        for name, (nfe, quality) in synthetic.BASELINES.items()
    }
    without = synthetic.summarised(ours, theirs, WANTED, 3)
    bound = synthetic.baseline_rows("oracle-best-of-2@5", WANTED, 10, 0.95)
    summary = synthetic.summarised(ours, {**theirs, "oracle-best-of-2@5": bound}, WANTED, 3)
    assert summary["baselines"]["oracle-best-of-2@5"]["bound"]
    assert "difference" not in summary["baselines"]["oracle-best-of-2@5"]
    assert summary["hypotheses"] == without["hypotheses"]


def test_a_method_that_lacks_an_image_or_has_one_twice_is_an_error() -> None:
    rows = synthetic.policy_rows(WANTED, 0.6)
    with pytest.raises(AssertionError, match="two images"):
        tabulate("policy", [*rows, rows[0]], WANTED)
    with pytest.raises(KeyError):
        tabulate("policy", rows[1:], WANTED)
    extra = synthetic.row("policy", EpisodeRequest("another", 1), 0.5, 5)
    with pytest.raises(AssertionError, match="nobody asked for"):
        tabulate("policy", [*rows, extra], WANTED)
