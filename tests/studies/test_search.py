"""What a study asks for, against a simulated ledger: any order of results and kills gives the same runs and choices."""

import random
from dataclasses import dataclass, field, replace
from math import inf, isclose, nan
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neoplug.errors import Problem, RecipeError
from neoplug.studies.arms import Arm
from neoplug.studies.jobs import Job
from neoplug.studies.search import agenda, largest_agenda
from neoplug.studies.study import Search, Searched

RATE = "train.learning_rate"
SIZE = "adapter.lora.r"


@dataclass
class Line:
    """A line of the ledger."""

    status: str = "completed"
    values: dict = field(default_factory=dict)


class Names:
    """Names jobs by what they are; recipes are valid up to the rate `most`."""

    def __init__(self, most=inf):
        self.most = most

    def job(self, arm, kind, seed, trial):
        if trial.get(RATE, 0) > self.most:
            raise RecipeError([Problem("too large")])
        return Job(f"{arm.name} {seed} {sorted(trial.items())}", arm, kind, seed, trial)


def study_of(names="ab", values=(1e-3, 1e-2, 1e-1), *, extend=0, seeds=(100, 101), metric="cross_entropy", **keys):
    searched = {RATE: Searched(("train", "learning_rate"), "learning_rate", tuple(values), extend), **keys}
    return SimpleNamespace(
        arms=[Arm({"adapter": name}) for name in names],
        search=Search(searched, seeds),
        seeds=(0, 1, 2),
        metrics={metric: None, "forward_kl": None},
    )


def finish(study, job, score):
    """Return the line of a job: `score` is a function of it, and NaN diverges."""
    value = score(job)
    metric = next(iter(study.metrics))
    return Line("completed", {f"validation_{metric}": value}) if value == value else Line("diverged")


def complete(study, score, names=None, ledger=None, rng=None):
    """Run a study to its end; with `rng`, some of its jobs at a time, in any order. Return its agenda and phases."""
    names, ledger, phases = names or Names(), {} if ledger is None else ledger, []
    while (wanted := agenda(study, ledger, names)).missing:
        phases.append(wanted.phase)
        assert not {job.id for job in wanted.missing} & ledger.keys()
        missing = list(wanted.missing)
        if rng is not None:
            missing = rng.sample(missing, rng.randint(0, min(len(missing), 4)))
        ledger |= {job.id: finish(study, job, score) for job in missing}
    assert wanted.phase == "complete"
    return wanted, list(dict.fromkeys(phases))


def near(**best):
    """Return the score of a valley: each arm has its best rate, at which the score is 0."""
    from math import log

    return lambda job: abs(log(job.trial[RATE]) - log(best[job.arm.name])) + job.seed * 1e-6


def test_the_search_comes_first_and_its_best_rates_are_tested():
    study = study_of()
    first = agenda(study, {}, Names())
    assert (first.phase, len(first.missing), first.chosen) == ("search", 2 * 3 * 2, {})
    done, phases = complete(study, near(a=1e-2, b=1e-1))
    assert phases == ["search", "test"]
    assert done.chosen == {"a": {RATE: 1e-2}, "b": {RATE: 1e-1}}
    tests = [(job.arm.name, job.seed, job.trial[RATE]) for job in done.jobs if job.kind == "test"]
    assert tests == [(arm, seed, rate) for arm, rate in (("a", 1e-2), ("b", 1e-1)) for seed in (0, 1, 2)]


def test_without_a_search_there_are_only_test_runs():
    study = study_of()
    study.search = Search({}, ())
    wanted = agenda(study, {}, Names())
    assert (wanted.phase, largest_agenda(study)) == ("test", (0, 0, 6))
    assert [(job.kind, job.seed, job.trial) for job in wanted.missing[:3]] == [("test", seed, {}) for seed in (0, 1, 2)]


def test_an_edge_extends_the_grid_of_all_arms_by_its_ratio():
    done, phases = complete(study_of(extend=3), near(a=1e-2, b=10))
    assert phases == ["search", "extension", "test"]
    assert done.grid == {RATE: (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)}
    assert done.chosen == {"a": {RATE: 1e-2}, "b": {RATE: 10.0}}
    assert {arm: len(trials) for arm, trials in done.trials.items()} == {"a": 6, "b": 6}


def test_one_extension_covers_both_edges_and_the_last_leaves_the_best_at_an_edge():
    done, _ = complete(study_of(extend=1), near(a=1e-9, b=1e9))
    assert done.grid == {RATE: (1e-4, 1e-3, 1e-2, 1e-1, 1.0)}
    assert done.chosen == {"a": {RATE: 1e-4}, "b": {RATE: 1.0}}


def test_an_extension_with_a_worse_result_ends_the_search():
    done, _ = complete(study_of(extend=3), near(a=1e-2, b=1e-1))
    assert done.grid == {RATE: (1e-3, 1e-2, 1e-1, 1.0)}


def test_an_extension_that_no_recipe_may_have_is_not_made():
    done, _ = complete(study_of(extend=3), near(a=1e-9, b=1e9), Names(most=0.1))
    assert done.grid[RATE] == (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def test_a_grid_of_whole_numbers_stays_one():
    study = study_of(values=(8, 16), extend=5)
    done, _ = complete(study, near(a=1e9, b=1))
    assert done.grid[RATE] == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    assert all(isinstance(value, int) for value in done.grid[RATE])


def test_ties_take_the_smaller_value():
    done, _ = complete(study_of(), lambda job: 1.0)
    assert done.chosen == {"a": {RATE: 1e-3}, "b": {RATE: 1e-3}}


def test_greater_is_better_for_some_metrics():
    done, _ = complete(study_of(metric="top1_agreement"), near(a=1e-3, b=1e-1))
    assert done.chosen == {"a": {RATE: 1e-1}, "b": {RATE: 1e-3}}


def test_the_mean_over_the_tuning_seeds_chooses():
    scores = {(1e-3, 100): 0.0, (1e-3, 101): 1.0, (1e-2, 100): 0.45, (1e-2, 101): 0.5, (1e-1, 100): 0.9, (1e-1, 101): 0}
    done, _ = complete(study_of("a"), lambda job: scores.get((job.trial[RATE], job.seed), 0))
    assert done.chosen == {"a": {RATE: 1e-1}}


@pytest.mark.parametrize("status", ["diverged", "failed", "out_of_memory", "refused"])
def test_a_rate_of_which_one_seed_did_not_complete_is_not_chosen(status):
    study, ledger = study_of("a"), {}
    for job in agenda(study, ledger, Names()).missing:
        spoilt = job.trial[RATE] == 1e-1 and job.seed == 101
        ledger[job.id] = Line(status) if spoilt else finish(study, job, near(a=1e-1))
    assert agenda(study, ledger, Names()).chosen == {"a": {RATE: 1e-2}}


def test_an_arm_of_which_no_rate_can_be_used_has_no_test_runs_and_extends_nothing():
    done, _ = complete(study_of(extend=2), lambda job: nan if job.arm.name == "a" else near(b=1e-2)(job))
    assert done.chosen == {"a": None, "b": {RATE: 1e-2}}
    assert {job.arm.name for job in done.jobs if job.kind == "test"} == {"b"}
    assert done.grid[RATE] == (1e-3, 1e-2, 1e-1)


def test_the_scale_of_an_arm_multiplies_its_grid_and_extensions():
    study = study_of(extend=1)
    study.search.keys[RATE] = replace(study.search.keys[RATE], scale={"adapter": {"b": 0.3}})
    done, _ = complete(study, near(a=1e-2, b=100))
    assert [trial[RATE] for trial in done.trials["a"]] == [1e-3, 1e-2, 1e-1, 1.0]
    assert [trial[RATE] for trial in done.trials["b"]] == [3e-4, 3e-3, 3e-2, 3e-1]
    assert done.chosen["b"] == {RATE: 3e-1}


def test_several_searched_keys_have_the_product_of_their_grids_and_are_extended_apart():
    size = Searched(("adapter", "lora", "r"), "r", (4, 8), 1)
    study = study_of("a", extend=1, **{SIZE: size})
    assert largest_agenda(study) == (3 * 2 * 2, (5 * 4 - 3 * 2) * 2, 3)
    done, _ = complete(study, lambda job: abs(job.trial[RATE] - 1e-2) + abs(job.trial[SIZE] - 16))
    assert done.grid == {RATE: (1e-3, 1e-2, 1e-1), SIZE: (4, 8, 16)}
    assert len(done.trials["a"]) == 9
    assert done.chosen == {"a": {RATE: 1e-2, SIZE: 16}}


def test_equal_jobs_of_two_arms_run_once():
    study = study_of("ab")
    same = SimpleNamespace(
        job=lambda arm, kind, seed, trial: replace(Names().job(arm, kind, seed, trial), id=f"{seed} {trial}")
    )
    wanted = agenda(study, {}, same)
    assert (len(wanted.jobs), len(wanted.missing)) == (12, 6)


@st.composite
def landscapes(draw):
    """Draw a study, and a score of its jobs, of which some diverge."""
    study = study_of("abcd"[: draw(st.integers(1, 4))], extend=draw(st.integers(0, 3)), values=(1e-3, 3e-3, 1e-2))
    if draw(st.booleans()):
        study.search.keys[SIZE] = Searched(("r",), "r", (4, 8), draw(st.integers(0, 1)))
    salt = draw(st.integers(0, 10**6))

    def score(job):
        drawn = random.Random(f"{salt} {job.id}")
        return nan if drawn.random() < 0.1 else round(drawn.random() * 4) / 4  # ties are frequent

    return study, score


@given(landscapes(), st.integers(0, 10**6))
def test_any_order_of_results_and_kills_gives_the_same_runs_and_choices(landscape, seed):
    study, score = landscape
    straight, _ = complete(study, score)
    ledger = {}
    shuffled, _ = complete(study, score, ledger=ledger, rng=random.Random(seed))
    assert (shuffled.chosen, shuffled.grid) == (straight.chosen, straight.grid)
    assert [job.id for job in shuffled.jobs] == [job.id for job in straight.jobs]
    assert ledger.keys() == {job.id for job in straight.jobs}  # nothing else ran


@given(landscapes(), st.integers(0, 10**6))
def test_an_added_arm_runs_what_is_new_only(landscape, seed):
    study, score = landscape
    ledger = {}
    fewer = SimpleNamespace(**{**vars(study), "arms": study.arms[:-1] or study.arms})
    complete(fewer, score, ledger=ledger, rng=random.Random(seed))
    before = {*ledger}
    grown, _ = complete(study, score, ledger=ledger)
    whole, _ = complete(study, score)
    assert (grown.chosen, grown.grid, grown.jobs) == (whole.chosen, whole.grid, whole.jobs)
    assert ledger.keys() - before == {job.id for job in whole.jobs} - before
    changed = SimpleNamespace(**{**vars(study), "metrics": {"cross_entropy": 0.5, "jsd": 1.0}})
    assert agenda(changed, ledger, Names()).phase == "complete"  # of other margins and further metrics


@given(landscapes())
def test_every_arm_has_as_many_trials_and_none_is_better_than_the_chosen(landscape):
    study, score = landscape
    done, _ = complete(study, score)
    assert len({len(trials) for trials in done.trials.values()}) == 1
    for arm in study.arms:
        means = {}
        for trial in done.trials[arm.name]:
            values = [score(Names().job(arm, "search", seed, trial)) for seed in study.search.seeds]
            if all(value == value for value in values):
                means[tuple(trial.values())] = sum(values) / len(values)
        chosen = done.chosen[arm.name]
        assert (chosen is None) == (not means)
        if chosen is not None:
            best = min(means.values())
            assert tuple(chosen.values()) == min(values for values, mean in means.items() if isclose(mean, best))
    for key, searched in study.search.keys.items():
        added = len(done.grid[key]) - len(searched.values)
        assert added <= 2 * searched.extend
        at_edge = any(trial and trial[key] in (done.grid[key][0], done.grid[key][-1]) for trial in done.chosen.values())
        assert not at_edge or added >= searched.extend  # the search ends inside of its grid, or used all extensions
