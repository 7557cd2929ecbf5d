"""The summary of a study: comparisons, answers, exploratory parts and remarks, from small tables with known content."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from neoplug.studies.arms import Arm
from neoplug.studies.statistics.crossed import crossed
from neoplug.studies.study import Contrast, Search, Searched, Study
from neoplug.studies.summary import summarise
from neoplug.studies.summary_schema import Summary

pytestmark = pytest.mark.usefixtures("frozen_garbage")

ADAPTERS, LOSSES = ("lora", "dora", "pissa"), ("ce", "neo")
SEEDS = (0, 1, 2, 3, 4)
GAIN = {"lora": 0.3, "dora": 0.2, "pissa": 0.25}  # of `neo` over `ce`, in nats


def study(**changes):
    """Return a study of three adapters and two losses."""
    axes = {"adapter": ADAPTERS, "loss": LOSSES}
    given = {
        "name": "robustness",
        "file": Path("robustness.yaml"),
        "source": "robustness.yaml",
        "overrides": (),
        "axes": axes,
        "arms": tuple(Arm({"adapter": adapter, "loss": loss}) for adapter in ADAPTERS for loss in LOSSES),
        "seeds": SEEDS,
        "search": Search({}, ()),
        "metrics": {"cross_entropy": 0.02},
        "contrasts": (Contrast("loss=ce", {"loss": "ce"}, {}, ("cross_entropy",)),),
        "executor": ("local", {}),
        "match": None,
        "keep": "best",
        "base": None,
        "tree": None,
        "consent": None,
    }
    return Study(**given | changes)


def row(adapter, loss, seed, status="completed", kind="test", **values):
    name = f"{adapter}/{loss}"
    return {
        "adapter": adapter,
        "loss": loss,
        "seed": seed,
        "kind": kind,
        "status": status,
        "id": f"{name}/{seed}",
        **values,
    }


def runs(noise=0.01, gain=GAIN, seeds=SEEDS):
    """Return the test runs of all arms: a score of each arm, an effect of the seed, and noise."""
    rng = np.random.default_rng(0)
    effect = rng.normal(size=max(seeds) + 1)
    return pd.DataFrame(
        row(
            adapter, loss, seed, cross_entropy=2 + effect[seed] - gain[adapter] * (loss == "neo") + noise * rng.normal()
        )
        for adapter in ADAPTERS
        for loss in LOSSES
        for seed in seeds
    )


def scores(table, adapter, loss, metric="cross_entropy"):
    return table[(table.adapter == adapter) & (table.loss == loss)].sort_values("seed")[metric].to_numpy()


def plain(summary):
    """Return a summary as it is in the file; refuses NaN and infinity."""
    data = summary.model_dump(mode="json")
    assert json.loads(json.dumps(data, allow_nan=False)) == json.loads(summary.model_dump_json())
    assert Summary.model_validate_json(summary.model_dump_json()) == summary
    return data


def answer(summary, metric="cross_entropy"):
    return {line["metric"]: line["robust"] for line in plain(summary)["robust"]}[metric]


def test_the_comparisons_are_those_of_scipy_and_statsmodels():
    table = runs()
    found = plain(summarise(study(), table))["contrasts"]
    assert [(line["arm"], line["control"]) for line in found] == [(f"{name}/neo", f"{name}/ce") for name in ADAPTERS]
    both = [(scores(table, name, "neo"), scores(table, name, "ce")) for name in ADAPTERS]
    p = [stats.ttest_rel(*pair).pvalue for pair in both]
    one_sided = [ttost_paired(*pair, -0.02, 0.02)[0] for pair in both]
    for line, pair, own, adjusted, equivalence in zip(
        found, both, p, multipletests(p, method="holm")[1], multipletests(one_sided, method="holm")[1], strict=True
    ):
        assert line["family"] == "loss=ce"
        assert line["metric"] == "cross_entropy"
        assert line["estimate"] == pytest.approx((pair[0] - pair[1]).mean())
        assert line["interval"] == pytest.approx(list(stats.ttest_rel(*pair).confidence_interval(0.95)))
        assert (line["p"], line["p_adjusted"]) == pytest.approx((own, adjusted))
        assert line["p_equivalence"] == pytest.approx(equivalence)
        assert line["equivalent"] is False
        assert line["n"] == 5
        assert line["improvement"] == {"wins": 5, "ties": 0, "losses": 0, "paired": 1.0} | {
            "unpaired": line["improvement"]["unpaired"]
        }


def test_a_family_is_adjusted_over_all_its_metrics():
    table = runs().assign(forward_kl=lambda frame: frame.cross_entropy.to_numpy()[::-1])
    metrics = {"cross_entropy": None, "forward_kl": None}
    together = study(metrics=metrics, contrasts=(Contrast("both", {"loss": "ce"}, {}, tuple(metrics)),))
    found = plain(summarise(together, table))["contrasts"]
    expected = multipletests([line["p"] for line in found], method="holm")[1]
    assert len(found) == 6
    assert [line["p_adjusted"] for line in found] == pytest.approx(list(expected))
    apart = study(metrics=metrics, contrasts=tuple(Contrast(name, {"loss": "ce"}, {}, (name,)) for name in metrics))
    found = plain(summarise(apart, table))["contrasts"]
    for name in metrics:
        lines = [line for line in found if line["family"] == name]
        expected = multipletests([line["p"] for line in lines], method="holm")[1]
        assert [line["p_adjusted"] for line in lines] == pytest.approx(list(expected))


@pytest.mark.parametrize(
    ("gain", "noise", "margin", "expected"),
    [
        (GAIN, 0.01, 0.02, "yes"),
        (GAIN | {"dora": -0.2}, 0.01, 0.02, "no"),  # one is worse
        (GAIN | {"dora": 0.0}, 0.001, 0.02, "no"),  # one is equivalent
        (GAIN | {"dora": 0.01}, 0.0001, 0.02, "no"),  # one is better by less than the margin
        (GAIN | {"dora": 0.01}, 0.0001, None, "yes"),  # no margin: any gain counts
        (GAIN | {"dora": 0.0}, 0.1, 0.02, "undecided"),
        (dict.fromkeys(ADAPTERS, 0.0), 0.5, 0.02, "undecided"),
    ],
)
def test_robust_is_answered_by_all_gains(gain, noise, margin, expected):
    assert answer(summarise(study(metrics={"cross_entropy": margin}), runs(noise, gain))) == expected


def test_a_gain_is_oriented_and_an_estimate_is_not():
    table = runs().assign(top1_agreement=lambda frame: 0.5 - frame.cross_entropy / 10)
    metrics = {"cross_entropy": None, "top1_agreement": None}
    summary = summarise(
        study(metrics=metrics, contrasts=(Contrast("loss=ce", {"loss": "ce"}, {}, tuple(metrics)),)), table
    )
    assert [answer(summary, metric) for metric in metrics] == ["yes", "yes"]
    signs = {line["metric"]: np.sign(line["estimate"]) for line in plain(summary)["contrasts"]}
    assert signs == {"cross_entropy": -1, "top1_agreement": 1}
    assert all(line["improvement"]["wins"] == 5 for line in plain(summary)["contrasts"])


def test_a_number_of_a_probe_has_no_direction():
    table = runs().rename(columns={"cross_entropy": "probes.quiz.share"})
    metrics = {"probes.quiz.share": 0.02}
    summary = summarise(
        study(metrics=metrics, contrasts=(Contrast("loss=ce", {"loss": "ce"}, {}, tuple(metrics)),)), table
    )
    assert answer(summary, "probes.quiz.share") == "undecided"
    assert all(line["p_adjusted"] < 0.05 and line["improvement"] is None for line in plain(summary)["contrasts"])


def test_runs_that_did_not_complete_are_missing_and_stated():
    table = runs()
    table.loc[(table.adapter == "dora") & (table.loss == "neo") & (table.seed == 1), ["status", "cross_entropy"]] = (
        "diverged",
        np.nan,
    )
    table.loc[(table.adapter == "dora") & (table.loss == "ce") & (table.seed == 3), "status"] = "failed"
    table = table[~((table.adapter == "lora") & (table.loss == "neo") & (table.seed == 4))]
    found = plain(summarise(study(), table))
    lines = {line["arm"]: line for line in found["contrasts"]}
    assert {arm: line["n"] for arm, line in lines.items()} == {"lora/neo": 4, "dora/neo": 3, "pissa/neo": 5}
    kept = table[table.seed.isin([0, 2, 4]) & (table.adapter == "dora")]
    expected = stats.ttest_rel(scores(kept, "dora", "neo"), scores(kept, "dora", "ce"))
    assert lines["dora/neo"]["p"] == pytest.approx(expected.pvalue)
    remarks = "\n".join(found["remarks"])
    assert "dora/neo: 4 of 5 test runs completed (1 diverged)" in remarks
    assert "dora/ce: 4 of 5 test runs completed (1 failed)" in remarks
    assert "lora/neo: 4 of 5 test runs completed (1 not run)" in remarks
    assert {line["arm"]: line["n"] for line in found["arms"]}["dora/neo"] == 4


def test_an_arm_without_a_completed_run_leaves_its_family_undecided():
    table = runs()
    table.loc[(table.adapter == "dora") & (table.loss == "neo"), "status"] = "out_of_memory"
    found = plain(summarise(study(), table))
    (line,) = [line for line in found["contrasts"] if line["arm"] == "dora/neo"]
    assert (line["n"], line["estimate"], line["p"], line["equivalent"]) == (0, None, None, None)
    assert found["robust"][0]["robust"] == "undecided"
    assert found["robust"][0]["reason"] == "of 3 gains: 2 above 0, 1 undecided"
    others = [line["p"] for line in found["contrasts"] if line["n"]]
    expected = multipletests([*others, 1.0], method="holm")[1][:2]  # the third comparison was planned as well
    assert [line["p_adjusted"] for line in found["contrasts"] if line["n"]] == pytest.approx(list(expected))


def test_a_score_that_is_not_finite_is_missing():
    table = runs()
    table.loc[0, "cross_entropy"] = math.inf
    found = plain(summarise(study(), table))
    assert found["contrasts"][0]["n"] == 4
    assert "lora/ce: 4 of 5 completed test runs have a finite cross_entropy" in found["remarks"]


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 2)])
def test_few_seeds_are_stated(seeds):
    found = plain(summarise(study(seeds=seeds), runs(seeds=seeds)))
    assert any(f"{len(seeds)} test seed" in remark and "no claim" in remark for remark in found["remarks"])
    line = found["contrasts"][0]
    assert line["n"] == len(seeds)
    assert line["estimate"] is not None
    assert (line["interval"] is None) == (line["p"] is None) == (len(seeds) == 1)


def test_what_the_seeds_cannot_show_is_stated_for_each_family():
    found = plain(summarise(study(), runs()))
    (remark,) = found["remarks"]
    assert remark == (
        "loss=ce: with 3 comparisons and 5 seeds, an observed difference is significant from 1.8 standard deviations "
        "of the paired differences on, and a true one of 2.3 is found with probability 0.8"
    )


def test_scores_without_noise_give_no_nan():
    found = plain(summarise(study(), runs(noise=0.0)))
    assert all(line["p"] == 0 and line["smallest_detectable"] == 0 for line in found["contrasts"])
    assert sum("by the same value at each seed" in remark for remark in found["remarks"]) == 3
    same = plain(summarise(study(), runs().assign(cross_entropy=2.0)))
    assert all(line["p"] == 1 and line["equivalent"] for line in same["contrasts"])
    assert same["robust"][0]["robust"] == "no"


@pytest.mark.parametrize("table", [pd.DataFrame(), runs().assign(status="failed"), runs().head(1)])
def test_a_study_that_has_hardly_begun_has_a_summary(table):
    found = plain(summarise(study(), table, pd.DataFrame(), pd.DataFrame()))
    assert [line["n"] for line in found["contrasts"]] == [0, 0, 0]
    assert found["robust"][0]["robust"] == "undecided"
    assert found["models"] == found["ranks"] == found["rates"] == []


def test_runs_of_other_arms_and_seeds_are_left_out():
    """Of an earlier state of the study file."""
    extra = [row("vera", "neo", seed, cross_entropy=9.0) for seed in SEEDS]
    extra += [row("lora", "neo", 7, cross_entropy=9.0), row("lora", "neo", 0, kind="search", cross_entropy=9.0)]
    assert summarise(study(), pd.concat([runs(), pd.DataFrame(extra)])) == summarise(study(), runs())


# Documents.


def documents(table, count=20):
    """Return the sums of each document of each run: their mean over tokens in the test half is the run's score."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 80, count)
    rows = []
    for one in table.itertuples():
        per_token = rng.normal(size=count)
        for half, shift in (("test", one.cross_entropy), ("validation", 50.0)):
            values = per_token - (per_token * tokens).sum() / tokens.sum() + shift
            rows += [
                {"id": one.id, "document": f"{half}{at}", "half": half, "number": at, "tokens": tokens[at]}
                | {"cross_entropy": values[at] * tokens[at]}
                for at in rng.permutation(count)
            ]
    return pd.DataFrame(rows)


def test_both_noises_are_those_of_the_test_half():
    table = runs()
    sums = documents(table)
    found = plain(summarise(study(), table, sums))["contrasts"]
    half = sums[sums.half == "test"].assign(each=lambda frame: frame.cross_entropy / frame.tokens)
    weights = half.groupby("document").tokens.first()
    for line in found:
        per_token = [
            half[half.id.str.startswith(line[name])].pivot(index="id", columns="document", values="each")
            for name in ("arm", "control")
        ]
        runs_of = [each.mul(weights).sum(axis=1) / weights.sum() for each in per_token]
        linear = [
            each.sub(run, axis=0).mul(weights / weights.mean()).add(run, axis=0).to_numpy()
            for each, run in zip(per_token, runs_of, strict=True)
        ]
        expected = crossed(linear[0] - linear[1])
        assert line["estimate"] == pytest.approx(expected.estimate)
        assert line["both_noises"]["interval"] == pytest.approx(list(expected.interval))
        assert line["both_noises"]["documents"] == 20
        assert line["both_noises"]["rest_sd"] == pytest.approx(expected.rest_sd)


def test_without_the_same_documents_there_is_no_interval_over_documents():
    table = runs()
    sums = documents(table)
    without = sums[~((sums.id == "lora/neo/0") & (sums.document == "test3"))]
    found = plain(summarise(study(), table, without))["contrasts"]
    assert [line["both_noises"] is None for line in found] == [True, False, False]
    assert all(line["both_noises"] is None for line in plain(summarise(study(), table))["contrasts"])
    other = sums.drop(columns="cross_entropy")
    assert all(line["both_noises"] is None for line in plain(summarise(study(), table, other))["contrasts"])


def test_a_document_that_occurs_twice_is_one():
    table = runs()
    sums = documents(table)
    halves = sums.assign(tokens=sums.tokens / 2, cross_entropy=sums.cross_entropy / 2)
    one, other = summarise(study(), table, sums), summarise(study(), table, pd.concat([halves, halves]))
    for line, same in zip(one.contrasts, other.contrasts, strict=True):
        assert line.both_noises.interval == pytest.approx(same.both_noises.interval)


# The exploratory parts.


def test_arms_are_described():
    table = runs()
    found = {line["arm"]: line for line in plain(summarise(study(), table))["arms"]}
    values = scores(table, "dora", "neo")
    line = found["dora/neo"]
    assert (line["n"], line["mean"], line["sd"]) == pytest.approx((5, values.mean(), values.std(ddof=1)))
    assert (line["lowest"], line["highest"]) == (values.min(), values.max())
    assert line["interquartile_mean"] == pytest.approx(np.sort(values)[1:4].mean())


def test_the_model_finds_an_interaction_that_is_there():
    found = plain(summarise(study(), runs(gain=GAIN | {"dora": -0.3})))["models"][0]
    assert found["metric"] == "cross_entropy"
    assert found["arms"]["degrees"] == [5, 20]
    (interaction,) = found["interactions"]
    assert interaction["axes"] == ["adapter", "loss"]
    assert interaction["degrees"] == [2, 20]
    assert interaction["p"] < 1e-6
    without = plain(summarise(study(), runs(noise=0.3, gain=dict.fromkeys(ADAPTERS, 0.3))))["models"][0]
    assert without["interactions"][0]["p"] > 0.01
    assert found["residual_sd"] == pytest.approx(0.01, rel=0.5)
    assert found["seed_sd"] == pytest.approx(np.random.default_rng(0).normal(size=5).std(ddof=1), rel=0.05)


def test_pooled_intervals_are_narrower_than_those_of_one_pair():
    lines = plain(summarise(study(), runs()))["contrasts"]
    widths = [[high - low for low, high in (line["interval"], line["pooled"]["interval"])] for line in lines]
    assert np.mean([pooled for _, pooled in widths]) < np.mean([own for own, _ in widths])


def test_ranks_are_compared_over_seeds_and_over_levels():
    """Under `ce` the adapters are reversed: tau is -1 over losses; the order of all arms is the same at each seed."""
    level = {"lora": 1, "dora": 2, "pissa": 3}
    table = runs()
    table["cross_entropy"] = [
        level[adapter] * (1 if loss == "neo" else -1) + seed
        for adapter, loss, seed in zip(table.adapter, table.loss, table.seed, strict=True)
    ]
    found = {line["over"]: line for line in plain(summarise(study(), table))["ranks"]}
    assert (found["seed"]["mean"], found["seed"]["lowest"]) == pytest.approx((1.0, 1.0))
    assert (found["seed"]["pairs"], found["seed"]["items"]) == (10, 6)
    assert (found["loss"]["mean"], found["loss"]["pairs"], found["loss"]["items"]) == pytest.approx((-1.0, 1, 3))
    assert (found["adapter"]["mean"], found["adapter"]["pairs"], found["adapter"]["items"]) == pytest.approx(
        (1.0, 3, 2)
    )


def search_rows(losses, seeds=(100, 101), adapter="lora", metric="validation_cross_entropy", **others):
    """Return search runs of an arm: learning rate -> validation loss, or the status of the run with the last seed."""
    return [
        row(adapter, "ce", seed, kind="search", learning_rate=rate, **others)
        | ({metric: loss + 0.01 * (seed - 100.5)} if isinstance(loss, float) else {})
        | ({"status": loss} if isinstance(loss, str) and seed == seeds[-1] else {})
        for rate, loss in losses.items()
        for seed in seeds
    ]


def searched(**keys):
    return Search({f"train.{key}": Searched(("train", key), key, values) for key, values in keys.items()}, (100, 101))


def test_the_good_region_of_learning_rates():
    rows = search_rows({1e-4: 3.0, 1e-3: 2.01, 1e-2: 2.0, 1e-1: 2.5})
    rows += search_rows({1e-4: 2.0, 1e-3: 2.01, 1e-2: "diverged", 1e-1: 2.0}, adapter="dora")
    search = searched(learning_rate=(1e-4, 1e-3, 1e-2, 1e-1))
    found = plain(summarise(study(search=search), pd.concat([runs(), pd.DataFrame(rows)])))["rates"]
    assert found[0] == {
        "arm": "lora/ce", "key": "learning_rate", "best": 1e-2, "lowest": 1e-3, "highest": 1e-2, "width": 1.0,
        "open": False,
    }  # fmt: skip
    assert (found[1]["arm"], found[1]["lowest"], found[1]["highest"], found[1]["open"]) == ("dora/ce", 1e-4, 1e-3, True)
    assert len(found) == 2


def test_each_searched_key_has_its_region_at_the_best_of_the_others():
    rows = [
        one
        for decay, shift in ((0.1, 0.0), (0.01, 0.3))
        for one in search_rows({1e-3: 2.0 + shift, 1e-2: 2.5 + shift}, weight_decay=decay)
    ]
    search = searched(learning_rate=(1e-3, 1e-2), weight_decay=(0.01, 0.1))
    table = pd.concat([runs(), pd.DataFrame(rows)])
    found = {line["key"]: line for line in plain(summarise(study(search=search), table))["rates"]}
    assert (found["learning_rate"]["lowest"], found["learning_rate"]["highest"]) == (1e-3, 1e-3)
    assert (found["weight_decay"]["lowest"], found["weight_decay"]["highest"]) == (0.1, 0.1)


def test_without_a_margin_there_is_no_good_region():
    table = pd.concat([runs(), pd.DataFrame(search_rows({1e-3: 2.0}))])
    search = searched(learning_rate=(1e-3,))
    assert plain(summarise(study(search=search, metrics={"cross_entropy": None}), table))["rates"] == []


def test_references_are_given_for_each_arm():
    references = pd.DataFrame(
        [
            {"adapter": "lora", "loss": "ce", "reference": "untrained", "cross_entropy": 4.0},
            {"adapter": "lora", "loss": "ce", "reference": "teacher", "cross_entropy": math.nan},
            {"adapter": "gone", "loss": "ce", "reference": "teacher", "cross_entropy": 1.0},
        ]
    )
    assert plain(summarise(study(), runs(), references=references))["references"] == [
        {"arm": "lora/ce", "reference": "untrained", "values": {"cross_entropy": 4.0}},
        {"arm": "lora/ce", "reference": "teacher", "values": {"cross_entropy": None}},
    ]


def test_a_control_that_fixes_all_axes_compares_every_other_arm():
    control = {"adapter": "lora", "loss": "ce"}
    found = plain(summarise(study(contrasts=(Contrast("lora", control, {}, ("cross_entropy",)),)), runs()))["contrasts"]
    assert {line["control"] for line in found} == {"lora/ce"}
    assert len(found) == 5


def test_levels_may_be_numbers_in_the_table():
    ranked = study(
        axes={"rank": ("4", "8"), "loss": LOSSES},
        arms=tuple(Arm({"rank": rank, "loss": loss}) for rank in ("4", "8") for loss in LOSSES),
    )
    table = runs()
    table = table[table.adapter != "pissa"].assign(rank=lambda frame: frame.adapter.map({"lora": 4, "dora": 8}))
    found = plain(summarise(ranked, table.drop(columns="adapter")))["contrasts"]
    assert [(line["arm"], line["n"]) for line in found] == [("4/neo", 5), ("8/neo", 5)]
