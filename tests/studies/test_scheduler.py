"""The scheduler: whatever is killed, and whatever changes, no job is repeated and none is lost."""

import json
import random

import pandas as pd
import pytest

from neoplug.errors import Interrupted, RecipeError, UsageError
from neoplug.runs.signals import Stop
from neoplug.studies import scheduler
from neoplug.studies.directory import StudyDir
from neoplug.studies.executors import Ended
from neoplug.studies.jobs import Identities, Job
from neoplug.studies.scheduler import RETRIES, Scheduler
from neoplug.studies.status import Unwatched, read_state

from .conftest import Simulation

AXES = {"loss": {"ce": {"cross_entropy": {"weight": 1}}, "kl": {"forward_kl": {"weight": 1}}}}
SMALL = {"axes": AXES, "search": {"train.learning_rate": {"values": [1e-3, 1e-2], "extend": 1, "seeds": [100]}}}


def ledger(folder):
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]


def results(folder):
    return pd.read_csv(folder / "results.csv", keep_default_na=False)


def ids(folder):
    return [line["id"] for line in ledger(folder)]


class Watcher(Unwatched):
    def __init__(self):
        self.states, self.rows = [], []

    def update(self, state):
        self.states.append(state)

    def ended(self, row, label):
        self.rows.append((row, label))


class Scripted:
    """An executor of which `end(job)` says how each job ends."""

    detached = False
    capacity = 2

    def __init__(self, end):
        self.end, self.jobs, self.submitted, self.stopped = end, [], [], False

    def submit(self, jobs):
        self.jobs += jobs
        self.submitted += jobs

    def wait(self, seconds):
        return [self.end(self.jobs.pop(0))]

    def running(self):
        return self.jobs

    def stop(self):
        self.stopped = True


def scripted(study, folder, end, stop=None, watch=None):
    """Return a scheduler of a study and its executor."""
    directory = StudyDir.create(folder)
    return Scheduler(study, directory, Identities(study), watch or Unwatched(), stop or Stop()), Scripted(end)


def test_a_study_runs_its_search_extensions_and_tests(study_lab, simulation, tmp_path):
    watch = Watcher()
    wanted = simulation.run(study_lab.study(**SMALL), tmp_path / "out", watch=watch)
    assert wanted.phase == "complete"
    found = ids(tmp_path / "out")
    assert sorted(found) == sorted(job.id for job in wanted.jobs) == sorted(simulation.performed)
    assert len(set(found)) == len(found)
    assert [row.id for row, _ in watch.rows] == found
    assert {label.partition(",")[0] for _, label in watch.rows} == {"ce", "kl"}
    phases = list(dict.fromkeys(state.phase for state in watch.states))
    assert phases in (["search", "test", "complete"], ["search", "extension", "test", "complete"])
    assert all(state.done + len(state.running) <= state.expected for state in watch.states)
    assert (results(tmp_path / "out")["kind"] == "test").sum() == 2 * 2
    assert not (tmp_path / "out" / "jobs").exists()


@pytest.fixture(scope="module")
def undisturbed(module_study_lab, tmp_path_factory):
    """Return a study, its identities, the folder in which it ran, and its agenda."""
    study, folder = module_study_lab.study(**SMALL), tmp_path_factory.mktemp("undisturbed") / "out"
    identities = Identities(study)
    with pytest.MonkeyPatch.context() as patch:
        return study, identities, folder, Simulation(patch).run(study, folder, identities=identities)


@pytest.mark.parametrize("faults", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("seed", range(8))
def test_in_any_order_of_kills_nothing_is_repeated_or_lost(
    undisturbed, simulation, tmp_path, monkeypatch, seed, faults
):
    """Processes of jobs, the study and the machine are killed before, while and after a line is written."""
    monkeypatch.setattr(scheduler, "RETRIES", 10_000)
    study, identities, expected, wanted = undisturbed
    killed = simulation.run(study, tmp_path / "out", random.Random(seed), faults, identities=identities)
    assert killed.chosen == wanted.chosen
    assert len(simulation.performed) == len(set(simulation.performed))
    assert sorted(ids(tmp_path / "out")) == sorted(ids(expected)) == sorted(simulation.performed)
    assert results(tmp_path / "out").to_dict("records") == results(expected).to_dict("records")


def test_what_is_added_runs_and_nothing_else(study_lab, simulation, tmp_path):
    before = simulation.run(study_lab.study(**SMALL, seeds=[0, 1]), tmp_path / "out")
    simulation.performed = []
    more = {**AXES["loss"], "mix": {"cross_entropy": {"weight": 0.5}, "forward_kl": {"weight": 0.5}}}
    changed = study_lab.study(**{**SMALL, "axes": {"loss": more}, "search": None}, seeds=[0, 1])
    assert not {job.id for job in simulation.run(changed, tmp_path / "other").jobs} & {job.id for job in before.jobs}
    simulation.performed = []
    changed = study_lab.study(**{**SMALL, "axes": {"loss": more}}, seeds=[0, 1, 2])
    after = simulation.run(changed, tmp_path / "out")
    new = {job.id for job in after.jobs} - {job.id for job in before.jobs}
    assert sorted(simulation.performed) == sorted(new)
    simulation.performed = []
    margin = study_lab.study(
        **{**SMALL, "axes": {"loss": more}}, seeds=[0, 1, 2], metrics={"cross_entropy": {"margin": 0.5}},
        contrasts=[{"control": {"loss": "ce"}, "metrics": ["cross_entropy"]}],
    )  # fmt: skip
    simulation.run(margin, tmp_path / "out")
    assert simulation.performed == []


def test_what_is_no_longer_asked_for_stays_in_the_ledger_and_leaves_the_tables(study_lab, simulation, tmp_path):
    simulation.run(study_lab.study(**SMALL), tmp_path / "out")
    before = ids(tmp_path / "out")
    wanted = simulation.run(study_lab.study(**SMALL, seeds=[0]), tmp_path / "out")
    assert ids(tmp_path / "out") == before
    assert sorted(results(tmp_path / "out")["id"]) == sorted(job.id for job in wanted.jobs)
    assert set(results(tmp_path / "out").query("kind == 'test'")["seed"]) == {0}


@pytest.mark.parametrize(("out_of_memory", "status"), [(False, "failed"), (True, "out_of_memory")])
def test_a_job_whose_process_is_lost_again_and_again_is_given_up(
    study_lab, simulation, tmp_path, out_of_memory, status
):
    lost = []

    def end(job):
        if not lost or job in lost:
            lost.append(job)
            return Ended(job, "its process ended by SIGKILL", out_of_memory)
        run.worker(job)
        return Ended(job)

    study = study_lab.study(axes=AXES, search=None)
    run, executor = scripted(study, tmp_path / "out", end)
    run.worker = scheduler_worker(run)
    run.run(executor)
    assert len(lost) == 1 + RETRIES
    frame = results(tmp_path / "out").set_index("id")
    assert frame.loc[lost[0], "status"] == status
    assert frame.loc[lost[0], "reason"] == f"its process ended by SIGKILL ({1 + RETRIES} times)"
    assert (frame["status"] == "completed").sum() == len(frame) - 1 == 3


def scheduler_worker(run):
    from neoplug.studies.worker import Worker

    return Worker(run.directory.path)


def test_a_recipe_that_is_refused_is_a_row(study_lab, simulation, tmp_path, monkeypatch):
    load = Job.load

    def refused(self, study):
        if dict(self.arm.levels) == {"loss": "kl"}:
            raise RecipeError([])
        return load(self, study)

    monkeypatch.setattr(Job, "load", refused)
    watch = Watcher()
    simulation.run(study_lab.study(axes=AXES, search=None), tmp_path / "out", watch=watch)
    assert watch.states[-1].counts == {"completed": 2, "refused": 2}
    assert len(watch.rows) == 4
    frame = results(tmp_path / "out")
    assert dict(frame.groupby("loss")["status"].unique().map(list)) == {"ce": ["completed"], "kl": ["refused"]}


def test_a_signal_ends_the_study_and_the_next_process_goes_on(study_lab, simulation, tmp_path):
    stop, study = Stop(), study_lab.study(axes=AXES, search=None)

    def end(job):
        run.worker(job)
        stop.signal = 15
        return Ended(job)

    run, executor = scripted(study, tmp_path / "out", end, stop)
    run.worker = scheduler_worker(run)
    (tmp_path / "out" / "study.json").touch()
    with pytest.raises(Interrupted, match="the same command goes on") as caught:
        run.run(executor)
    assert caught.value.exit_code == 143
    assert executor.stopped
    assert len(ids(tmp_path / "out")) == 1
    simulation.run(study, tmp_path / "out")
    assert len(simulation.performed) == len(set(simulation.performed)) == 4


def test_an_arm_without_a_usable_trial_has_rows_that_say_so(study_lab, simulation, tmp_path, monkeypatch):
    complete = simulation.perform

    def diverges(directory, facts):
        row = complete(directory, facts)
        return row.model_copy(update={"status": "diverged"}) if facts["arm"]["loss"] == "kl" else row

    monkeypatch.setattr("neoplug.studies.worker.perform", diverges)
    simulation.run(study_lab.study(**SMALL), tmp_path / "out")
    tests = results(tmp_path / "out").query("kind == 'test'")
    assert list(tests["loss"]) == ["ce", "ce", "kl", "kl"]
    assert list(tests["status"]) == ["completed", "completed", "failed", "failed"]
    assert tests["reason"].iloc[2] == "no trial of the search completed with all tuning seeds"
    assert list(tests["seed"]) == [0, 1, 0, 1]


def test_one_process_at_a_time(study_lab, simulation, tmp_path):
    study = study_lab.study(axes=AXES, search=None)
    simulation.run(study, tmp_path / "out")
    directory = StudyDir.open(tmp_path / "out")
    with directory.held():
        assert directory.is_held
        with pytest.raises(UsageError, match=r"another process is at work(?s:.)*--status"):
            simulation.run(study, tmp_path / "out")
    assert not directory.is_held


def test_another_folder_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is no study"):
        StudyDir.create(tmp_path)
    with pytest.raises(UsageError, match="is no directory of a study"):
        StudyDir.open(tmp_path)


def test_the_state_is_written_for_other_processes(study_lab, simulation, tmp_path):
    simulation.run(study_lab.study(axes=AXES, search=None), tmp_path / "out")
    state = read_state(StudyDir.open(tmp_path / "out"))
    assert (state.name, state.phase, state.expected, state.done) == ("study", "complete", 4, 4)
    assert state.counts == {"completed": 4}
    assert list(state.running) == []
