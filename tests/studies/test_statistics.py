"""Statistics of studies against scipy, statsmodels, closed forms in float64, hand-computed tables and invariants."""

import math
from itertools import pairwise

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import integrate, stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from neoplug.evaluation.evaluate import metrics_of
from neoplug.registry.measures import MEASURES
from neoplug.studies.statistics.crossed import crossed, document_values
from neoplug.studies.statistics.description import agreement, good_region, improvement, interquartile_mean
from neoplug.studies.statistics.linear_model import block_model, interactions, seed_sd
from neoplug.studies.statistics.paired import Pairs, compare, detectable_effect, holm, significant_effect

pytestmark = pytest.mark.usefixtures("frozen_garbage")


def pairs(arm, control, margin=None):
    return Pairs(np.array(arm, float), np.array(control, float), margin)


def alone(arm, control, margin=None):
    """Return the comparison of a family of one."""
    return compare([pairs(arm, control, margin)])[0]


def random_pairs(rng, n, shift=0.0):
    seed = rng.normal(size=n)
    return seed + shift + rng.normal(size=n), seed + rng.normal(size=n)


# Paired comparisons.


def test_a_comparison_computed_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1, t = 2 root 3 with 2 degrees of freedom."""
    found = alone([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], margin=4.0)
    t = 2 * math.sqrt(3)
    p = 1 - t / math.sqrt(2 + t**2)  # closed form for 2 degrees of freedom
    quantile = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    assert (found.n, found.estimate) == (3, 2.0)
    assert found.p == pytest.approx(p, rel=1e-12)
    assert found.p == pytest.approx(0.0741799, abs=1e-7)
    assert found.interval == pytest.approx((2 - quantile / math.sqrt(3), 2 + quantile / math.sqrt(3)), rel=1e-9)
    assert found.p_equivalence == pytest.approx(p / 2)  # the margin is as far above the mean as 0 is below
    assert found.equivalent


@pytest.mark.parametrize("n", [2, 3, 5, 10, 50])
def test_tests_are_those_of_scipy_and_statsmodels(n):
    rng = np.random.default_rng(n)
    for margin in (0.1, 1.0, 5.0):
        arm, control = random_pairs(rng, n, 0.5)
        found, expected = alone(arm, control, margin), stats.ttest_rel(arm, control)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
        assert found.estimate == pytest.approx(arm.mean() - control.mean())
        assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-7)
        assert found.p_equivalence == pytest.approx(ttost_paired(arm, control, -margin, margin)[0], rel=1e-9)
        assert found.equivalent == (found.p_equivalence <= 0.05)


def test_a_family_is_adjusted_by_holm_and_its_intervals_by_bonferroni():
    rng = np.random.default_rng(0)
    family = [pairs(*random_pairs(rng, 6, shift), margin=3.0) for shift in (0, 0.5, 1, 2, 4)]
    found = compare(family)
    p = [stats.ttest_rel(one.arm, one.control).pvalue for one in family]
    assert_allclose([one.p for one in found], p)
    assert_allclose([one.p_adjusted for one in found], by_definition(p))
    one_sided = [ttost_paired(one.arm, one.control, -3, 3)[0] for one in family]
    assert_allclose([one.p_equivalence for one in found], by_definition(one_sided))
    for one, line in zip(family, found, strict=True):
        expected = stats.ttest_rel(one.arm, one.control).confidence_interval(1 - 0.05 / 5)
        assert line.interval_adjusted == pytest.approx(tuple(expected), rel=1e-7)


def by_definition(p):
    """Return Holm's adjusted p: the largest of (k - j) p_(j) over the j that are not above it, at most 1."""
    order, k = sorted(p), len(p)
    return [min(1, max((k - j) * value for j, value in enumerate(order) if value <= own)) for own in p]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_its_definition(p):
    found = holm(p)
    assert_allclose(found, by_definition(p), atol=1e-12)
    order = np.argsort(p, kind="stable")
    assert all(found[one] <= found[other] + 1e-12 for one, other in pairwise(order))


def test_a_comparison_that_could_not_be_made_counts_in_its_family():
    rng = np.random.default_rng(1)
    made, empty = pairs(*random_pairs(rng, 5, 3), margin=1.0), pairs([], [], margin=1.0)
    alone_p, found = compare([made])[0].p, compare([made, empty, empty])
    assert found[0].p_adjusted == pytest.approx(min(1, 3 * alone_p))
    assert found[1].p_adjusted is found[1].p is found[1].p_equivalence is found[1].estimate is None
    assert found[1].sign == 0


def test_only_comparisons_with_a_margin_are_a_family_of_equivalence_tests():
    rng = np.random.default_rng(2)
    one, other = (random_pairs(rng, 5) for _ in range(2))
    found = compare([pairs(*one, margin=4.0), pairs(*other)])
    assert found[0].p_equivalence == pytest.approx(ttost_paired(*one, -4, 4)[0])
    assert found[1].equivalent is None


@pytest.mark.parametrize(
    ("arm", "control", "margin", "p", "p_equivalence"),
    [
        ([2.0, 3.0, 4.0], [2.0, 3.0, 4.0], 0.1, 1.0, 0.0),  # the same scores
        ([2.5, 3.5, 4.5], [2.0, 3.0, 4.0], 0.1, 0.0, 1.0),
        ([2.5, 3.5, 4.5], [2.0, 3.0, 4.0], 0.6, 0.0, 0.0),
        ([2.1, 3.1, 0.4], [2.0, 3.0, 0.3], 0.2, 0.0, 0.0),  # the same difference up to rounding
        ([0.0, 0.0], [0.0, 0.0], 0.1, 1.0, 0.0),
    ],
)
def test_differences_without_variance(arm, control, margin, p, p_equivalence):
    found = alone(arm, control, margin)
    assert (found.p, found.p_equivalence, found.smallest_detectable) == (p, p_equivalence, 0.0)
    assert found.interval == (found.estimate, found.estimate)


def test_one_seed_gives_an_estimate_alone():
    found = alone([2.0], [1.5], 0.1)
    assert (found.n, found.estimate) == (1, 0.5)
    assert found.interval is found.p is found.p_adjusted is found.smallest_detectable is found.equivalent is None


def test_two_seeds_have_closed_forms():
    """With 1 degree of freedom t is Cauchy: p = 1 - 2/pi arctan |t|."""
    found = alone([1.0, 3.0], [0.0, 0.0])
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(2.0))
    half = math.tan(0.475 * math.pi)  # the standard error is 1
    assert found.interval == pytest.approx((2 - half, 2 + half))


@given(st.integers(2, 8), st.integers(0, 2**32 - 1), st.floats(-3, 3), st.floats(0.1, 10))
def test_comparisons_follow_shift_scale_and_exchange(n, seed, shift, scale):
    arm, control = random_pairs(np.random.default_rng(seed), n)
    found = alone(arm, control)
    same = alone(scale * arm + shift, scale * control + shift)
    swapped = alone(control, arm)
    assert same.p == pytest.approx(found.p, rel=1e-6)
    assert same.estimate == pytest.approx(scale * found.estimate, rel=1e-6, abs=1e-9)
    assert swapped.p == pytest.approx(found.p)
    assert swapped.interval == pytest.approx((-found.interval[1], -found.interval[0]))
    assert (found.p <= 0.05) == (found.interval[0] > 0 or found.interval[1] < 0)


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("k", [1, 7, 35])
def test_the_smallest_detectable_difference_has_the_power(n, k):
    """Against the noncentral t by its integral over the chi distribution of the standard deviation."""
    effect, critical = detectable_effect(n, k), stats.t.isf(0.05 / k / 2, n - 1)

    def found_given(sd):  # of the differences, relative to the true one
        return (
            stats.norm.sf(critical * sd - effect * math.sqrt(n))
            * stats.chi.pdf(sd * math.sqrt(n - 1), n - 1)
            * math.sqrt(n - 1)
        )

    power, _ = integrate.quad(found_given, 0, np.inf)
    assert power == pytest.approx(0.8, abs=1e-6)
    if k < 35:  # beyond, statsmodels' value is not finite
        assert TTestPower().power(effect, n, 0.05 / k) == pytest.approx(0.8, abs=1e-6)


def test_the_smallest_detectable_difference_is_in_units_of_the_metric():
    arm, control = random_pairs(np.random.default_rng(3), 5)
    family = compare([pairs(arm, control)] * 7)
    assert family[0].smallest_detectable == pytest.approx((arm - control).std(ddof=1) * detectable_effect(5, 7))


def test_what_five_seeds_can_show():
    """The figures of docs/explanation/statistics.md."""
    assert [round(significant_effect(5, k), 1) for k in (1, 7, 35)] == [1.2, 2.3, 3.5]
    assert [round(detectable_effect(5, k), 1) for k in (1, 7, 35)] == [1.7, 2.9, 4.4]


# Seeds and documents.


def test_components_computed_by_hand():
    """2 seeds, 3 documents: mean 3; mean squares 24 of seeds (1 degree), 8 of documents (2), 2 of the rest (2)."""
    rest = np.array([[1, -1, 0], [-1, 1, 0]])
    table = 3 + np.array([[2], [-2]]) + np.array([[2, -2, 0]]) + rest
    found = crossed(table.astype(float))
    assert found.estimate == 3
    assert found.seed_sd**2 == pytest.approx((24 - 2) / 3)
    assert found.document_sd**2 == pytest.approx((8 - 2) / 2)
    assert found.rest_sd**2 == pytest.approx(2)
    variance = found.seed_sd**2 / 2 + found.document_sd**2 / 3 + found.rest_sd**2 / 6
    assert variance == pytest.approx((24 + 8 - 2) / 6)
    degrees = 30**2 / (24**2 / 1 + 8**2 / 2 + 2**2 / 2)
    assert found.degrees == pytest.approx(degrees)
    assert found.interval[1] - 3 == pytest.approx(stats.t.isf(0.025, degrees) * math.sqrt(5))


def test_without_noise_of_documents_the_interval_is_that_over_seeds():
    """A document component that is not above 0 drops out, and what is left is the t interval of the seeds' means."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 1)) + rng.normal(size=(5, 40)) / 100
    table -= table.mean(0) - table.mean()  # documents have equal means
    found = crossed(table)
    assert found.document_sd == 0
    means = table.mean(1)
    assert found.interval == pytest.approx(tuple(stats.ttest_1samp(means, 0).confidence_interval(0.95)))


def test_without_noise_of_seeds_the_interval_is_that_over_documents():
    rng = np.random.default_rng(1)
    table = rng.normal(size=(1, 40)) + rng.normal(size=(5, 40)) / 100
    table -= table.mean(1, keepdims=True) - table.mean()
    found = crossed(table)
    assert found.seed_sd == 0
    assert found.interval == pytest.approx(tuple(stats.ttest_1samp(table.mean(0), 0).confidence_interval(0.95)))


def test_components_are_unbiased():
    """Over 4,000 tables their means are the true components, within 4 standard errors."""
    rng = np.random.default_rng(2)
    tables = [0.5 * rng.normal(size=(5, 1)) + rng.normal(size=(1, 30)) + rng.normal(size=(5, 30)) for _ in range(4000)]
    found = [crossed(table) for table in tables]
    for name, truth in (("seed_sd", 0.25), ("document_sd", 1.0), ("rest_sd", 1.0)):
        values = np.array([getattr(one, name) ** 2 for one in found])
        assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(values))


def test_seeds_and_documents_are_exchangeable():
    table = np.random.default_rng(3).normal(size=(6, 9)) + np.arange(9)
    one, other = crossed(table), crossed(table.T)
    assert one.interval == pytest.approx(other.interval)
    assert (one.seed_sd, one.document_sd) == pytest.approx((other.document_sd, other.seed_sd))


@pytest.mark.parametrize("shape", [(1, 10), (5, 1), (0, 5)])
def test_components_need_two_seeds_and_two_documents(shape):
    assert crossed(np.zeros(shape)) is None


def test_a_table_without_noise_has_a_point_as_interval():
    found = crossed(np.full((3, 4), 0.5))
    assert (found.interval, found.degrees) == ((0.5, 0.5), None)


def document_sums(rng, measure, documents):
    """Return random sums of a measure and tokens, [documents] each."""
    tokens = rng.integers(1, 500, documents).astype(float)
    sums = {name: tokens * rng.uniform(0.2, 3, documents) for name in measure.sums}
    return sums, tokens


def value_of(measure, sums, tokens):
    """Return a metric as evaluation computes it."""
    names = [name for other in MEASURES.values() for name in other.sums]
    columns = {name: sums.get(name, np.ones_like(tokens)) for name in names}
    table = pyarrow.table({"document": [""] * len(tokens), "number": range(len(tokens)), "tokens": tokens, **columns})
    return metrics_of(table)[measure.name]


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())
def test_document_values_are_the_derivatives_of_the_metric(measure):
    """The mean is the metric; the rest is what it changes by when a document counts more, by central differences."""
    sums, tokens = document_sums(np.random.default_rng(4), measure, 12)
    found = document_values(measure, {name: values[None] for name, values in sums.items()}, tokens[None])[0]
    metric, step = value_of(measure, sums, tokens * 1000), 1e-4
    metric = value_of(measure, {name: values * 1000 for name, values in sums.items()}, tokens * 1000)
    assert found.mean() == pytest.approx(metric, rel=1e-9)
    for at in range(12):
        changed = []
        for sign in (1, -1):
            weights = np.where(np.arange(12) == at, 1 + sign * step, 1.0) * 1e6  # evaluation counts whole tokens
            changed.append(value_of(measure, {name: sums[name] * weights for name in sums}, tokens * weights))
        assert found[at] - metric == pytest.approx(12 * (changed[0] - changed[1]) / (2 * step), rel=1e-3, abs=1e-6)


def test_document_values_are_those_of_each_run():
    measure = MEASURES["cross_entropy"]
    rng = np.random.default_rng(5)
    runs = [document_sums(rng, measure, 7) for _ in range(3)]
    sums = {name: np.stack([run[name] for run, _ in runs]) for name in measure.sums}
    together = document_values(measure, sums, np.stack([tokens for _, tokens in runs]))
    for at, (run, tokens) in enumerate(runs):
        one = document_values(measure, {name: values[None] for name, values in run.items()}, tokens[None])
        assert_allclose(together[at], one[0])


# Linear models.


def balanced(rng, n, arms):
    """Return scores [n, arms], and the same as lists: scores, arms, seeds."""
    table = rng.normal(size=(n, 1)) + np.arange(arms) / 2 + rng.normal(size=(n, arms))
    return table, table.ravel(), list(range(arms)) * n, [seed for seed in range(n) for _ in range(arms)]


def test_the_block_model_is_the_analysis_of_variance():
    table, scores, arms, seeds = balanced(np.random.default_rng(0), 5, 4)
    model = block_model(scores, arms, seeds)
    left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    residual = (left**2).sum() / 12
    f = 5 * ((table.mean(0) - table.mean()) ** 2).sum() / 3 / residual
    assert model.arms.f == pytest.approx(f)
    assert model.arms.degrees == (3, 12)
    assert model.arms.p == pytest.approx(stats.f.sf(f, 3, 12))
    assert model.residual_sd == pytest.approx(math.sqrt(residual))
    found = model.difference(2, 0)
    error = math.sqrt(2 * residual / 5)
    estimate = table[:, 2].mean() - table[:, 0].mean()
    assert found.estimate == pytest.approx(estimate)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(estimate / error), 12))
    assert found.interval == pytest.approx(tuple(estimate + error * stats.t.ppf([0.025, 0.975], 12)))
    assert model.difference(0, 2).estimate == pytest.approx(-estimate)


def test_with_two_arms_the_block_model_is_the_paired_t_test():
    table, scores, arms, seeds = balanced(np.random.default_rng(1), 6, 2)
    model, expected = block_model(scores, arms, seeds), stats.ttest_rel(table[:, 1], table[:, 0])
    found = model.difference(1, 0)
    assert found.p == pytest.approx(expected.pvalue) == model.arms.p
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_the_block_model_of_an_incomplete_table_is_least_squares():
    rng = np.random.default_rng(2)
    _, scores, arms, seeds = balanced(rng, 5, 3)
    kept = np.sort(rng.choice(15, 11, replace=False))
    scores, arms, seeds = scores[kept], [arms[at] for at in kept], [seeds[at] for at in kept]
    design = np.array(
        [[seed == s for s in range(5)] + [arm == 1, arm == 2] for arm, seed in zip(arms, seeds, strict=True)]
    )
    solution, rss, *_ = np.linalg.lstsq(design.astype(float), scores)
    model = block_model(scores, arms, seeds)
    assert model.difference(2, 1).estimate == pytest.approx(solution[6] - solution[5])
    assert model.residual_sd == pytest.approx(math.sqrt(rss[0] / (11 - 7)))
    of_seeds = np.linalg.lstsq(design[:, :5].astype(float), scores)[1][0]
    assert model.arms.f == pytest.approx((of_seeds - rss[0]) / 2 / (rss[0] / 4))


@pytest.mark.parametrize(
    ("scores", "arms", "seeds"), [([], [], []), ([1.0], ["a"], [0]), ([1.0, 2.0], ["a", "b"], [0, 0])]
)
def test_without_degrees_of_freedom_there_is_no_block_model(scores, arms, seeds):
    assert block_model(scores, arms, seeds) is None
    assert interactions(scores, {"one": arms, "other": arms}, seeds) == {}


def test_a_block_model_without_residual():
    model = block_model([1.0, 2.0, 1.5, 2.5, 3.0, 4.0], ["a", "b"] * 3, [0, 0, 1, 1, 2, 2])
    found = model.difference("b", "a")
    assert (model.arms.f, model.arms.p, found.p) == (None, 0.0, 0.0)
    assert found.interval == pytest.approx((1.0, 1.0))
    same = block_model([1.0, 1.0, 1.5, 1.5], ["a", "b"] * 2, [0, 0, 1, 1])
    assert (same.arms.f, same.arms.p, same.difference("b", "a").p) == (None, 1.0, 1.0)


def crossed_axes(rng, n, first, second, effect):
    """Return scores [n, first, second] with an interaction, and their labels."""
    table = rng.normal(size=(n, 1, 1)) + rng.normal(size=(n, first, second))
    table += np.arange(first)[:, None] + effect * np.outer(np.arange(first), np.arange(second))
    seeds, one, other = (list(labels.ravel()) for labels in np.indices(table.shape))
    return table, table.ravel(), {"one": one, "other": other}, seeds


@pytest.mark.parametrize("effect", [0.0, 1.0])
def test_an_interaction_is_that_of_the_analysis_of_variance(effect):
    table, scores, levels, seeds = crossed_axes(np.random.default_rng(3), 5, 3, 2, effect)
    cells = table.mean(0)
    joint = cells - cells.mean(0) - cells.mean(1, keepdims=True) + cells.mean()
    left = table - cells - table.mean((1, 2), keepdims=True) + table.mean()
    f = 5 * (joint**2).sum() / 2 / ((left**2).sum() / 20)
    found = interactions(scores, levels, seeds)
    assert found.keys() == {("one", "other")}
    assert found["one", "other"].f == pytest.approx(f)
    assert found["one", "other"].degrees == (2, 20)
    assert found["one", "other"].p == pytest.approx(stats.f.sf(f, 2, 20))


def test_axes_that_vary_together_have_no_interaction():
    _, scores, levels, seeds = crossed_axes(np.random.default_rng(4), 5, 3, 1, 0)
    assert interactions(scores, {"one": levels["one"], "same": levels["one"]}, seeds) == {}


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_the_mixed_model_agrees_with_the_analysis_of_variance(spread):
    """For a complete table REML is the estimate by mean squares, where that is not negative."""
    rng = np.random.default_rng(5)
    table = spread * rng.normal(size=(5, 1)) + rng.normal(size=(5, 8))
    left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    seed, rest = 8 * ((table.mean(1) - table.mean()) ** 2).sum() / 4, (left**2).sum() / 28
    found = seed_sd(table.ravel(), list(range(8)) * 5, list(np.repeat(range(5), 8)))
    assert found == pytest.approx(math.sqrt(max(seed - rest, 0) / 8), abs=1e-3)


def test_a_mixed_model_of_equal_scores_is_none_or_zero():
    assert seed_sd([1.0] * 6, ["a", "b"] * 3, [0, 0, 1, 1, 2, 2]) in (None, 0.0)


# Descriptions.


@pytest.mark.parametrize(
    ("scores", "mean"), [([9, 1, 2, 3, 100], 14 / 3), ([1, 2, 3, 10], 2.5), ([1, 3], 2), ([4], 4), ([0, 1, 2, 8], 1.5)]
)
def test_the_interquartile_mean_drops_a_quarter_at_each_end(scores, mean):
    assert interquartile_mean(np.array(scores, float)) == pytest.approx(mean)


def test_ties_count_as_half():
    arm, control = np.array([1.0, 2.0, 2.0, 5.0]), np.array([1.0, 3.0, 1.0, 4.0])
    found = improvement(arm, control, greater_is_better=True)
    assert (found.wins, found.ties, found.losses, found.paired) == (2, 1, 1, 2.5 / 4)
    assert found.unpaired == pytest.approx(stats.mannwhitneyu(arm, control).statistic / 16)
    other = improvement(arm, control, greater_is_better=False)
    assert (other.wins, other.ties, other.losses) == (1, 1, 2)
    assert (other.paired, other.unpaired) == pytest.approx((1 - found.paired, 1 - found.unpaired))


def test_equal_scores_are_all_ties():
    found = improvement(np.ones(3), np.ones(3), greater_is_better=True)
    assert (found.ties, found.paired, found.unpaired) == (3, 0.5, 0.5)


def test_agreement_is_kendalls_tau_over_pairs_of_raters():
    """By hand: of the three pairs of items 1 2 3 and 1 3 2 order two alike and one otherwise."""
    found = agreement(np.array([[1.0, 2, 3], [1, 3, 2], [10, 20, 30]]))
    assert (found.pairs, found.items) == (3, 3)
    assert found.mean == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)
    assert found.lowest == pytest.approx(1 / 3)


def test_agreement_uses_the_items_that_both_rate_and_counts_ties():
    nan = math.nan
    found = agreement(np.array([[1.0, 2, 3, nan], [nan, 5, 4, 6], [1, 1, 2, 3]]))
    expected = [
        -1.0,
        stats.kendalltau([1, 2, 3], [1, 1, 2]).statistic,
        stats.kendalltau([5, 4, 6], [1, 2, 3]).statistic,
    ]
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.lowest == -1.0
    assert found.items == 4


@pytest.mark.parametrize("ratings", [[[1.0, 2.0]], [[1.0, 1.0], [1.0, 2.0]], [[math.nan, 1.0], [2.0, math.nan]]])
def test_without_two_raters_that_rank_there_is_no_agreement(ratings):
    assert agreement(np.array(ratings)) is None


@pytest.mark.parametrize(
    ("losses", "best", "lowest", "highest", "open_"),
    [
        ([3.0, 2.0, 1.0, 2.0, 3.0], 1e-2, 1e-2, 1e-2, False),
        ([3.0, 1.1, 1.0, 1.1, 3.0], 1e-2, 1e-3, 1e-1, False),
        ([1.1, 1.1, 1.0, 2.0, 3.0], 1e-2, 1e-4, 1e-2, True),
        ([3.0, 2.0, 1.0, 1.1, 1.0], 1e-2, 1e-2, 1e0, True),
        ([1.0, 2.0, 1.1, 3.0, 3.0], 1e-4, 1e-4, 1e-4, True),  # good again beyond a bad rate: another region
        ([3.0, math.nan, 1.0, math.nan, 1.0], 1e-2, 1e-2, 1e-2, False),  # a failed rate is not good
    ],
)
def test_the_good_region_is_around_the_best(losses, best, lowest, highest, open_):
    found = good_region([1e-4, 1e-3, 1e-2, 1e-1, 1e0], losses, 0.2)
    assert (found.best, found.lowest, found.highest, found.open) == (best, lowest, highest, open_)
    assert found.width == pytest.approx(math.log10(highest) - math.log10(lowest))


def test_without_a_score_there_is_no_good_region():
    assert good_region([1e-3, 1e-2], [math.nan, math.nan], 0.2) is None
