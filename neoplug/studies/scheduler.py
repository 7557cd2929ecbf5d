"""The scheduler: hands the jobs that a study asks for to an executor until its ledger has a line for each.

Which jobs these are, `search.agenda` says, a function of study and ledger, again after each phase. Nothing else is
remembered: a study that was killed goes on where it was, and a changed one runs what is new in it.
"""

import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from neoplug.environment.memory import IMPORTS
from neoplug.errors import Interrupted, NeoplugError, RecipeError
from neoplug.files import write_atomically
from neoplug.recipe import ResolvedRecipe
from neoplug.runs.signals import Stop
from neoplug.studies.directory import SUMMARY, StudyDir
from neoplug.studies.executors import Ended, Executor
from neoplug.studies.executors.local import Local
from neoplug.studies.jobs import Identities, Job
from neoplug.studies.keeping import Keeper
from neoplug.studies.ledger import Ledger, Row
from neoplug.studies.search import Agenda, agenda
from neoplug.studies.shared_inputs import distinct, validate
from neoplug.studies.status import State, StatusFile, Watch
from neoplug.studies.study import Study
from neoplug.studies.summary import summarise
from neoplug.studies.tables import LEARNING_RATE, write_tables
from neoplug.studies.worker import make_row

logger = logging.getLogger(__name__)

RETRIES = 3  # of a job whose process is lost
TICK = 0.5  # seconds between two looks at signals
UNUSABLE = "no trial of the search completed with all tuning seeds"


@dataclass(eq=False)
class Scheduler:
    """Runs a study in its directory, which this process has locked.

    stop  the signal by which it is to end
    """

    study: Study
    directory: StudyDir
    identities: Identities
    watch: Watch
    stop: Stop
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = self.directory.ledger
        self.ledger.refresh()
        self.keeper = Keeper(self.directory, self.study.keep, next(iter(self.study.metrics)))
        self.status = StatusFile(self.directory)
        self.lost: Counter[str] = Counter()  # job -> how often its process was lost
        self.needs: dict[str, int] = {}  # arm -> bytes
        self.recipes: dict[Any, dict[str, Any]] = {}  # of an arm and a trial
        self.jobs: dict[str, Job] = {}  # those that are handed out, by id
        self.out: dict[str, float] = {}  # those that an executor has, and when it started them; 0: not yet
        self.counts: Counter[str] = Counter()  # status -> jobs that are done
        self.left_out: Counter[str] = Counter()  # the same of jobs that the study no longer asks for
        self.expected = 0  # jobs in all
        self.seen = 0  # jobs that ended since `began`
        self.began = time.monotonic()

    def run(self, executor: Executor) -> Agenda:
        """Run all jobs; write the tables after each phase. Return what is left to do: nothing, unless it is detached.

        Raises:
            Interrupted: a signal was received; running jobs have saved a checkpoint.
            RunError: no process can be started.
        """
        wanted = self.agenda()
        self.study.consent.remember()  # workers load the recipes from the files of their jobs
        self.directory.write_lock(self.identities.contents)
        for job, row in self.done(wanted):
            self.keeper.apply(job, row)
        if wanted.missing:
            self.build_shared_inputs(wanted)
        while wanted.missing:
            self.perform(wanted, executor)
            if executor.detached:
                return wanted
            wanted = self.agenda()
            self.write_tables(wanted)
        self.write_tables(wanted)
        self.begin(wanted)
        self.report(wanted)
        self.directory.take_all_back()
        return wanted

    def agenda(self) -> Agenda:
        """Return what the study asks for, given the ledger."""
        return agenda(self.study, self.ledger.rows, self.identities)

    def done(self, wanted: Agenda) -> list[tuple[Job, Row]]:
        """Return the jobs that have a line in the ledger, with it."""
        rows = self.ledger.rows
        return [(job, rows[job.id]) for job in wanted.jobs if job.id in rows]

    def perform(self, wanted: Agenda, executor: Executor) -> None:
        """Run the jobs that are missing in a phase."""
        self.begin(wanted)
        left = deque({job.id: job for job in wanted.missing}.values())  # equal arms have equal jobs
        while left or self.out:
            batch: list[str] = []
            while left and len(self.out) + len(batch) < executor.capacity:
                if self.hand_out(job := left.popleft()):
                    batch.append(job.id)
            executor.submit(batch)
            if executor.detached:
                return
            self.out |= dict.fromkeys(batch, 0.0)
            for ended in executor.wait(TICK if self.out else 0):
                self.end(ended, executor)
            for job_id in executor.running():
                self.out[job_id] = self.out[job_id] or time.time()
            self.report(wanted)
            self.end_if_stopped(executor)

    def end_if_stopped(self, executor: Executor) -> None:
        """Stop an executor where a signal was received. Raises Interrupted."""
        if self.stop.signal is not None:
            executor.stop()
            raise Interrupted(self.stop.signal, "stopped by a signal; the same command goes on from here")

    def hand_out(self, job: Job) -> bool:
        """Write the file of a job; return whether it is to be run. One whose recipe is refused is done."""
        self.jobs[job.id] = job
        if job.id in self.ledger.rows:
            return False
        try:
            recipe = self.recipe(job)
        except RecipeError as error:
            self.finish(make_row(self.directory, job.as_dict(), status="refused", reason=str(error)))
            return False
        self.directory.hand_out({**job.as_dict(), "study": self.study.name, "recipe": recipe})
        return True

    def recipe(self, job: Job) -> dict[str, Any]:
        """Return the resolved recipe of a job. Raises RecipeError where it has mistakes."""
        key = (job.arm.name, tuple(job.trial.items()))
        if key not in self.recipes:
            self.recipes[key] = job.load(self.study).resolved()
        return self.recipes[key] | {"seed": job.seed}

    def end(self, ended: Ended, executor: Executor) -> None:
        """Note that an executor has ended a job; hand one that was lost out again, or give it up."""
        self.ledger.refresh()
        if ended.job not in self.ledger.rows:
            self.lost[ended.job] += 1
            reason = ended.reason or "its process ended without a result"
            logger.warning("%s: %s", self.label(self.jobs[ended.job]), reason)
            if self.lost[ended.job] <= RETRIES:
                self.out[ended.job] = 0.0
                executor.submit([ended.job])
                return
            status = "out_of_memory" if ended.out_of_memory else "failed"
            facts = self.jobs[ended.job].as_dict()
            reason = f"{reason} ({1 + RETRIES} times)"
            self.ledger.append(make_row(self.directory, facts, status=status, reason=reason))
            self.directory.take_back(ended.job)
        del self.out[ended.job]
        self.seen += 1
        self.finish(self.ledger.rows[ended.job])

    def finish(self, row: Row) -> None:
        """Write a row, where it is not in the ledger yet; then remove what is not kept."""
        self.ledger.append(row)
        job, self.counts[row.status] = self.jobs[row.id], self.counts[row.status] + 1
        self.keeper.apply(job, self.ledger.rows[row.id])
        self.watch.ended(row, self.label(job))

    def begin(self, wanted: Agenda) -> None:
        """Count what is done at the beginning of a phase, and what is expected in all."""
        done = {job.id: row.status for job, row in self.done(wanted)}
        self.counts = Counter(done.values())
        self.left_out = Counter(row.status for job, row in self.ledger.rows.items() if job not in done)
        known = {job.id for job in wanted.jobs}
        searching = wanted.phase in ("search", "extension")
        self.expected = len(known) + (len(self.study.arms) * len(self.study.seeds) if searching else 0)

    def report(self, wanted: Agenda) -> None:
        """Report the state to the watch and to status.json."""
        each = (time.monotonic() - self.began) / self.seen if self.seen else None
        running = [{"job": job, "label": self.label(self.jobs[job]), "since": at} for job, at in self.out.items() if at]
        left = None if each is None else each * (self.expected - self.counts.total())
        counts = dict(self.counts.most_common())
        state = State(self.study.name, wanted.phase, self.expected, counts, running, left, dict(self.left_out))
        self.watch.update(state)
        self.status.update(state)

    def build_shared_inputs(self, wanted: Agenda) -> None:
        """Tokenise the data and prepare the students of the missing jobs, once each, in a separate process.

        Raises RecipeError where a half of the held-out documents is empty.
        """
        self.begin(wanted)
        self.report(wanted)
        first = {job.arm.name: job for job in reversed(wanted.missing)}
        usable = {job.id: job for job in first.values() if self.hand_out(job)}
        chosen = list(distinct({name: self.recipe(job) for name, job in usable.items()}))
        command = [sys.executable, "-P", "-m", "neoplug.studies.shared_inputs", str(self.directory.path)]
        with closing(Local(command, self.directory.path / "logs", 1)) as builder:
            builder.submit(chosen)
            left = set(chosen)
            while left:
                self.end_if_stopped(builder)
                for ended in builder.wait(TICK):
                    left.discard(ended.job)
                    if ended.reason:
                        logger.warning("inputs of %s: %s; its runs will try", usable[ended.job].arm.name, ended.reason)
        for job in chosen:
            validate(self.jobs[job].load(self.study))
        self.began = time.monotonic()

    def memory(self, job: str) -> int:
        """Return the bytes that the run of a job needs, by its quick plan; without one, which its run explains, few."""
        from neoplug.runs.plan import plan

        arm = self.jobs[job].arm.name
        if arm not in self.needs:
            self.needs[arm] = IMPORTS
            with suppress(NeoplugError):
                self.needs[arm] += plan(self.jobs[job].load(self.study), quick=True)["memory_bytes"]["total"]
        return self.needs[arm]

    def write_tables(self, wanted: Agenda) -> None:
        """Write tables and summary; an arm of which no trial can be used has rows that say so."""
        unusable = [
            (job, make_row(self.directory, job.as_dict(), status="failed", reason=UNUSABLE))
            for arm in self.study.arms
            if wanted.chosen.get(arm.name, {}) is None
            for job in (Job("", arm, "test", seed, {}) for seed in self.study.seeds)
        ]
        tables = write_tables(self.directory, [*self.done(wanted), *unusable], self.rates)
        documents = None if tables.documents is None else tables.documents.to_pandas()
        summary = summarise(self.study, tables.results, documents, tables.references)
        write_atomically(self.directory.path / SUMMARY, summary.model_dump_json(indent=2) + "\n")

    @cached_property
    def rates(self) -> dict[str, float]:
        """Arm -> the learning rate of its recipe; empty where it is searched."""
        if self.study.search and LEARNING_RATE in self.study.search.keys:
            return {}
        seed = self.study.seeds[0]
        loaded: dict[str, ResolvedRecipe] = {arm.name: self.study.resolve(arm, {}, seed) for arm in self.study.arms}
        return {arm: checked.recipe.train.learning_rate for arm, checked in loaded.items()}

    def label(self, job: Job) -> str:
        """Return a job in words: `dora/neo, seed 3, train.learning_rate 0.001`."""
        trial: Sequence[str] = [f"{key} {value:g}" for key, value in job.trial.items()] if job.kind == "search" else []
        return ", ".join([job.arm.name, f"seed {job.seed}", *trial])
