"""The bootstrap against scipy, closed forms and an exact permutation test; its coverage on simulated data."""

import numpy as np
import pytest
import scipy.stats

from evaluation.statistics import Floats, Resampling, estimate, holm, non_inferior


def paired_data(
    rng: np.random.Generator, prompts: int = 200, seeds: int = 3, effect: float = 0.02
) -> tuple[Floats, Floats]:
    """Two methods' scores: prompts differ a lot, seeds less, methods by `effect`."""
    prompt_P1 = rng.normal(0.7, 0.2, (prompts, 1))
    seed_PS = rng.normal(0, 0.1, (prompts, seeds))
    ours = prompt_P1 + seed_PS + effect + rng.normal(0, 0.05, (prompts, seeds))
    theirs = prompt_P1 + seed_PS + rng.normal(0, 0.05, (prompts, seeds))
    return ours, theirs


def test_mean_interval_equals_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).gamma(2.0, 0.3, 150)
    ours = Resampling(150, resamples=20_000, seed=1).mean(values)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    standard_error = values.std() / np.sqrt(150)  # an end of 20,000 resamples is known to 0.02 of it
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.12 * standard_error)
    assert ours.high == pytest.approx(theirs.high, abs=0.12 * standard_error)


@pytest.mark.parametrize("prompts", [8, 20, 60])
def test_intervals_of_few_normal_values_are_as_wide_as_students(prompts: int) -> None:
    values = scipy.stats.norm.ppf((np.arange(prompts) + 0.5) / prompts)
    ours = Resampling(prompts, resamples=40_000).mean(values)
    half = scipy.stats.t.ppf(0.975, prompts - 1) * scipy.stats.sem(values)
    assert (ours.high - ours.low) / 2 == pytest.approx(half, rel=0.04)
    percentile = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9_999, rng=1)
    narrow = percentile.confidence_interval
    assert ours.high - ours.low > 1.01 * (narrow.high - narrow.low)


def test_resampled_means_have_the_closed_form_standard_error_of_clusters() -> None:
    ours, _ = paired_data(np.random.default_rng(3))
    by_prompt = ours.mean(1)
    replicates = Resampling(200, seed=4).means(by_prompt[:, None])[:, 0]
    assert replicates.mean() == pytest.approx(by_prompt.mean(), abs=1e-3)
    assert replicates.std() == pytest.approx(by_prompt.std() / np.sqrt(200), rel=0.03)
    naive = ours.std() / np.sqrt(ours.size)
    assert replicates.std() > 1.4 * naive, "seeds of one prompt must not count as independent images"


def test_strata_are_resampled_apart_so_that_their_difference_adds_no_noise() -> None:
    tiers = ("one",) * 50 + ("two",) * 50
    values = np.repeat([0.0, 1.0], 50)
    stratified = Resampling(100, strata_P=tiers).mean(values)
    assert (stratified.low, stratified.high) == pytest.approx((0.5, 0.5), abs=1e-12)
    free = Resampling(100).mean(values)
    assert free.high - free.low == pytest.approx(2 * 1.96 * 0.05, rel=0.05)


def test_blocks_of_a_large_bootstrap_keep_columns_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.statistics._BLOCK_ENTRIES", 700)
    x = np.random.default_rng(5).normal(size=100)
    together = Resampling(100, resamples=50, seed=6).means(np.stack([x, x + 0.25], axis=1))
    assert together.shape == (50, 2)
    np.testing.assert_allclose(together[:, 1] - together[:, 0], 0.25)
    alone = Resampling(100, resamples=50, seed=6).means(x[:, None])
    np.testing.assert_allclose(alone[:, 0], together[:, 0])


def test_p_value_agrees_with_a_sign_flip_permutation_test() -> None:
    rng = np.random.default_rng(7)
    for effect in (0.0, 0.004, 0.012):
        ours, theirs = paired_data(rng, effect=effect)
        difference = (ours - theirs).mean(1)
        permutation = scipy.stats.permutation_test(
            (difference,), np.mean, permutation_type="samples", n_resamples=9_999, rng=rng
        )
        bootstrap = Resampling(200, seed=8).mean(difference)
        assert bootstrap.p == pytest.approx(permutation.pvalue, abs=0.02)


def test_p_is_never_zero_and_one_when_all_resamples_sit_on_the_null() -> None:
    assert estimate(1.0, np.ones(999)).p == pytest.approx(2 / 1000)
    assert estimate(0.0, np.zeros(999)).p == 1.0


@pytest.mark.parametrize(("prompts", "skewed"), [(30, False), (80, True), (200, False)])
def test_intervals_cover_in_93_to_97_of_100_studies_and_p_is_uniform_under_the_null(
    prompts: int, skewed: bool
) -> None:
    """Studies of three seeds a prompt without any difference, resampled by prompt."""
    rng = np.random.default_rng(9)
    studies = 2_000
    prompt_KP = 0.1 * (
        rng.exponential(1, (studies, prompts)) - 1 if skewed else rng.normal(size=(studies, prompts))
    )
    difference_KP = prompt_KP + rng.normal(0, 0.1, (studies, prompts, 3)).mean(2)
    results = []
    for block, chunk_KP in enumerate(np.array_split(difference_KP, 10)):
        replicates_RK = Resampling(prompts, resamples=2_000, seed=block).means(chunk_KP.T)
        results += [
            estimate(float(study_P.mean()), replicates_R, degrees_of_freedom=prompts - 1)
            for study_P, replicates_R in zip(chunk_KP, replicates_RK.T, strict=True)
        ]
    coverage = np.mean([result.low <= 0 <= result.high for result in results])
    assert 0.93 <= coverage <= 0.97
    assert scipy.stats.kstest([result.p for result in results], "uniform").pvalue > 0.01
    assert all((result.p < 0.047) <= (not result.low <= 0 <= result.high) for result in results)
    assert all((result.p > 0.053) <= (result.low <= 0 <= result.high) for result in results)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1,) * 30, id="30 tiers of 1"),
        pytest.param((2,) * 20, id="20 tiers of 2"),
        pytest.param((5,) * 4, id="4 tiers of 5"),
        pytest.param((40, 5, 2, 1), id="tiers of many sizes"),
        pytest.param((50,) * 4, id="4 tiers of 50"),
    ],
)
def test_a_difference_of_nothing_is_called_one_in_5_of_100_stratified_studies(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(20)
    prompts, studies = sum(sizes), 2_000
    strata = tuple(str(tier) for tier, size in enumerate(sizes) for _ in range(size))
    difference_KP = rng.normal(0, 0.1, (studies, prompts))
    results = []
    for block, chunk_KP in enumerate(np.array_split(difference_KP, 10)):
        resampling = Resampling(prompts, resamples=2_000, seed=block, strata_P=strata)
        results += [
            resampling.estimate(float(study_P.mean()), replicates_R)
            for study_P, replicates_R in zip(chunk_KP, resampling.means(chunk_KP.T).T, strict=True)
        ]
    assert 0.03 <= np.mean([result.p < 0.05 for result in results]) <= 0.066  # three standard errors
    assert 0.934 <= np.mean([result.low <= 0 <= result.high for result in results]) <= 0.97


@pytest.mark.parametrize("sizes", [(5, 5, 5, 5), (50, 50, 50, 50), (30, 6)])
def test_resampled_means_have_the_unbiased_variance_of_a_stratified_mean(sizes: tuple[int, ...]) -> None:
    """Of independent strata: the sum of (n_h / P)^2 s_h^2 / n_h, s_h^2 with n_h - 1 (Cochran, 1977, 5.4)."""
    rng = np.random.default_rng(21)
    strata = [rng.normal(tier, 0.1 + tier, size) for tier, size in enumerate(sizes)]
    prompts = sum(sizes)
    expected = sum((len(one) / prompts) ** 2 * one.var(ddof=1) / len(one) for one in strata)
    names = tuple(str(tier) for tier, one in enumerate(strata) for _ in one)
    resampling = Resampling(prompts, resamples=40_000, strata_P=names)
    replicates_R = resampling.means(np.concatenate(strata)[:, None])[:, 0]
    assert replicates_R.var() == pytest.approx(expected, rel=0.03)
    assert resampling.degrees_of_freedom == prompts - len(sizes)


def test_small_strata_are_resampled_as_one_and_never_alone() -> None:
    tiers = ("one",) * 20 + ("two",) * 3 + ("three",) * 3
    values = np.repeat([0.0, 1.0, 3.0], (20, 3, 3))
    pooled = Resampling(26, strata_P=tiers)
    assert pooled.degrees_of_freedom == 26 - 2
    assert pooled.mean(values).low < values.mean() < pooled.mean(values).high
    left_over = Resampling(32, strata_P=("one",) * 20 + ("two",) * 10 + ("three",) * 2)
    assert left_over.degrees_of_freedom == 32 - 2
    assert np.allclose(np.concatenate(list(left_over.counts()))[:, :20].sum(1), 20)


def test_what_is_nothing_but_for_rounding_is_no_difference() -> None:
    """0.1 + 0.2 - 0.3 is 5.6e-17: resamples in which gains and losses cancel are on both sides of zero."""
    cancelled = np.full(999, 0.1 + 0.2 - 0.3)
    assert cancelled[0] != 0
    assert estimate(0.0, cancelled).p == 1.0
    assert estimate(0.0, -cancelled).p == 1.0


def test_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    values = np.random.default_rng(10).normal(size=60)
    assert Resampling(60, seed=1).mean(values) == Resampling(60, seed=1).mean(values)
    assert Resampling(60, seed=1).mean(values) != Resampling(60, seed=2).mean(values)


def test_missing_values_are_refused_and_not_averaged_away() -> None:
    values = np.ones(20)
    values[3] = np.nan
    with pytest.raises(AssertionError, match="non-finite"):
        Resampling(20).mean(values)


def test_spearman_equals_scipy_with_ties() -> None:
    rng = np.random.default_rng(11)
    x = rng.integers(1, 5, 120)
    y = np.round(x + rng.normal(0, 2, 120))
    result = Resampling(120, resamples=4_000, seed=12).spearman(x, y)
    assert result.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    reference = scipy.stats.bootstrap(
        (x, y),
        lambda a, b: scipy.stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1_000,
        rng=np.random.default_rng(13),
    ).confidence_interval
    assert result.low == pytest.approx(reference.low, abs=0.025)
    assert result.high == pytest.approx(reference.high, abs=0.025)


def test_spearman_of_columns_is_the_mean_of_theirs_resampled_together() -> None:
    rng = np.random.default_rng(22)
    x_PK = rng.normal(size=(80, 3))
    y_PK = x_PK + rng.normal(size=(80, 3))
    result = Resampling(80, resamples=500).spearman(x_PK, y_PK)
    each = [scipy.stats.spearmanr(x_PK[:, k], y_PK[:, k]).statistic for k in range(3)]
    assert result.value == pytest.approx(np.mean(each), abs=1e-12)
    alone = [Resampling(80, resamples=500).spearman(x_PK[:, k], y_PK[:, k]) for k in range(3)]
    assert result.high - result.low < min(one.high - one.low for one in alone)


def test_spearman_of_a_constant_is_zero_and_not_significant() -> None:
    result = Resampling(50, resamples=200).spearman(np.full(50, 17.0), np.arange(50.0))
    assert (result.value, result.low, result.high, result.p) == (0.0, 0.0, 0.0, 1.0)


def test_holm_against_scipy_free_definition() -> None:
    # Holm (1979): reject while p_(i) <= alpha / (m - i + 1); adjusted p < alpha must say the same.
    rng = np.random.default_rng(14)
    for _ in range(50):
        p = rng.uniform(0, 0.06, 6)
        adjusted = holm(p.tolist())
        rejected = set()
        for rank, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (6 - rank):
                break
            rejected.add(int(index))
        assert {index for index, value in enumerate(adjusted) if value <= 0.05} == rejected
    assert holm([0.04, 0.9, 0.5]) == pytest.approx([0.12, 1.0, 1.0])


def test_non_inferiority_looks_at_the_lower_bound_only() -> None:
    rng = np.random.default_rng(15)
    difference = rng.normal(0.0, 0.05, 400)
    difference -= difference.mean()
    result = Resampling(400).mean(difference)
    assert result.low == pytest.approx(-1.96 * 0.05 / 20, rel=0.08)
    assert non_inferior(result, margin=0.01)
    assert not non_inferior(result, margin=0.002)


def test_non_inferiority_p_agrees_with_students_test_against_the_margin() -> None:
    rng = np.random.default_rng(16)
    for shift in (-0.02, -0.008, 0.0):
        difference = rng.normal(shift, 0.05, 100)
        result = Resampling(100, resamples=40_000).non_inferiority(difference, margin=0.01)
        expected = scipy.stats.ttest_1samp(difference, -0.01, alternative="greater").pvalue
        assert result.p == pytest.approx(expected, abs=0.01)
        assert result.passed == (result.p < 0.025)
        assert result.difference == Resampling(100, resamples=40_000).mean(difference)


def test_non_inferiority_is_claimed_in_at_most_one_study_of_forty_at_the_margin() -> None:
    """Where the truth is exactly the margin, a claim is an error; 2.5% of them are allowed."""
    rng = np.random.default_rng(17)
    passed = [
        Resampling(40, resamples=1_000, seed=study)
        .non_inferiority(rng.normal(-0.01, 0.05, 40), margin=0.01)
        .passed
        for study in range(800)
    ]
    assert 0.009 <= np.mean(passed) <= 0.043  # .025 and three standard errors
