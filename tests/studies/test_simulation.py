"""Simulated studies with known truth: a short version here, and the counts that the docs show."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from neoplug.studies.statistics.paired import detectable_effect, significant_effect

ROOT = Path(__file__).parents[2]
NORMAL = ("normal", "normal_10_seeds", "normal_35", "normal_3_seeds", "unequal")  # paired differences are normal


@pytest.fixture(scope="module")
def maker(frozen_garbage):
    """Return the module of the script that writes the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import studies_page
    return studies_page


def test_short_simulations_of_one_comparison(maker):
    """Of 300 seeded studies: two-sided binomial tests of the rates of the t interval, its power, and the F test."""
    import studies

    rng, scenario = np.random.default_rng(0), studies.Scores("normal", comparisons=1)
    found = sum((scenario.study(rng) for _ in range(300)), Counter())
    rates = {"covered": 0.95, "pooled_covered": 0.95, "detected": 0.8, "false_difference": 0.05, "false_f": 0.05}
    for name, rate in rates.items():
        assert binomtest(found[name], 300, rate).pvalue > 0.001, name
    assert binomtest(found["bootstrap_covered"], 300, 0.95, alternative="less").pvalue < 0.001


def test_short_simulations_of_families(maker):
    """A family of seven has a false finding in at most 5 % of 200 seeded studies, by one-sided binomial tests."""
    import studies

    found = studies.block("normal", 10_000, 200)  # a stream that the stored simulation does not use
    for name in ("false_difference", "false_equivalence"):
        assert binomtest(found[name], 200, 0.05, alternative="greater").pvalue > 0.001
    assert binomtest(found["all_covered"], 200, 0.95, alternative="less").pvalue > 0.001


def test_short_simulations_of_documents(maker):
    import studies

    found = studies.block("documents", 10_000, 500)
    assert binomtest(found["covered"], 500, 0.93, alternative="less").pvalue > 0.001
    for name in ("seeds_covered", "cells_covered"):
        assert binomtest(found[name], 500, 0.93, alternative="less").pvalue < 0.001


def test_a_block_is_the_same_whenever_it_is_simulated(maker):
    import studies

    assert studies.block("missing", 3, 5) == studies.block("missing", 3, 5) != studies.block("missing", 4, 5)


@pytest.mark.parametrize("name", NORMAL)
def test_where_differences_are_normal_the_promises_hold(maker, name):
    row = maker.stored()[name]
    assert row["studies"] == 10_000
    assert 0.94 <= row["covered"] / row["intervals"] <= 0.96
    assert row["false_difference"] / row["studies"] <= 0.055
    assert row["false_equivalence"] / row["studies"] <= 0.055
    assert row["detected"] / row["intervals"] == pytest.approx(0.8, abs=0.01)


def test_every_scenario_was_simulated(maker):
    assert {name: row["studies"] for name, row in maker.stored().items()} == dict.fromkeys(maker.SCENARIOS, 10_000)


def test_the_page_shows_the_simulations(maker):
    text = maker.PAGE.read_text(encoding="utf-8")
    assert maker.tables(maker.stored()) in text
    picture = maker.PICTURE.read_text(encoding="utf-8")
    assert [name for name in maker.stored() if maker.SCENARIOS[name].title not in picture] == []


def test_the_page_states_what_few_seeds_can_show(maker):
    text = maker.PAGE.read_text(encoding="utf-8")
    for n in (3, 5, 10):
        numbers = [f"{significant_effect(n, k):.1f}, {detectable_effect(n, k):.1f}" for k in (1, 7, 35)]
        assert f"| {n} | {' | '.join(numbers)} |" in text
