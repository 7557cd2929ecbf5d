"""Studies on tiny models: a lab that writes study files, and an executor that only simulates runs."""

import json
import random
from pathlib import Path

import pytest
import yaml

from neoplug.files import content_hash
from neoplug.runs.signals import Stop
from neoplug.studies import scheduler, worker
from neoplug.studies.directory import StudyDir
from neoplug.studies.executors import Ended
from neoplug.studies.jobs import Identities
from neoplug.studies.specification import read
from neoplug.studies.status import Unwatched

Q_AND_V = {"target_modules": ["q_proj", "v_proj"]}
STUDY = {
    "base": "base.yaml",
    "axes": {
        "adapter": {"lora": {"lora": {"r": 4, **Q_AND_V}}, "dora": {"dora": {"r": 2, **Q_AND_V}}},
        "loss": {
            "ce": {"cross_entropy": {"weight": 1}},
            "neo": {"cross_entropy": {"weight": 0.5}, "forward_kl": {"weight": 0.5}},
        },
    },
    "seeds": [0, 1],
    "search": {"train.learning_rate": {"values": [1e-3, 1e-2], "extend": 1, "seeds": [100]}},
    "metrics": {"cross_entropy": {"margin": 0.02}},
}


class StudyLab:
    """A folder with a base recipe; its studies replace sections of STUDY."""

    def __init__(self, folder, student, teacher, chat):
        self.folder = Path(folder)
        base = {
            "teacher": {"model": str(teacher), "dtype": "float32"},
            "student": {"model": str(student), "dtype": "float32"},
            "data": {"source": str(chat), "max_length": 160, "packing": False, "held_out": 8},
            "adapter": {"lora": {"r": 4, **Q_AND_V}},
            "loss": {"cross_entropy": {"weight": 0.5}, "forward_kl": {"weight": 0.5}},
            "train": {
                "max_steps": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 1, "warmup_steps": 0, "save_steps": 1,
            },
        }  # fmt: skip
        (self.folder / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")

    def file(self, name="study", **sections):
        """Write a study file; None removes a section."""
        whole = {key: value for key, value in {**STUDY, **sections}.items() if value is not None}
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
        return file

    def study(self, *overrides, **sections):
        """Return a study."""
        return read(self.file(**sections), overrides)

    def hand_out(self, folder, jobs, **sections):
        """Hand out jobs, each given by arm number, kind, seed and trial; return the directory and their ids."""
        study = self.study(**sections)
        directory, identities = StudyDir.create(folder), Identities(study)
        made = [identities.job(study.arms[arm], kind, seed, trial) for arm, kind, seed, trial in jobs]
        for job in made:
            directory.hand_out({**job.as_dict(), "study": study.name, "recipe": job.load(study).resolved()})
        return directory, [job.id for job in made]


@pytest.fixture
def study_lab(tmp_path, tiny_student, tiny_teacher, tiny_chat):
    return StudyLab(tmp_path, tiny_student, tiny_teacher, tiny_chat)


@pytest.fixture(scope="module")
def module_study_lab(tmp_path_factory, tiny_student, tiny_teacher, tiny_chat):
    return StudyLab(tmp_path_factory.mktemp("lab"), tiny_student, tiny_teacher, tiny_chat)


@pytest.fixture(scope="session")
def ray_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ray")


@pytest.fixture
def home_of_ray(ray_folder, monkeypatch):
    """Isolate the home folder, in which Ray writes a token, from the user's; a process reads the token once."""
    monkeypatch.setenv("HOME", str(ray_folder))


class Killed(BaseException):
    """SIGKILL of the process that runs the study."""


class Simulated:
    """An executor whose jobs end in a random order; some processes are lost, and the study may be killed at any time.

    Jobs are performed by the real worker, in which `perform` is replaced.
    """

    detached = False
    capacity = 5

    def __init__(self, folder, draw, faults=0.0):
        self.worker, self.draw, self.faults, self.jobs = worker.Worker(folder), draw, faults, []

    def submit(self, jobs):
        self.jobs += jobs
        self.maybe("killed")

    def running(self):
        return self.jobs[:2]

    def wait(self, seconds):
        self.maybe("killed")
        job = self.jobs.pop(self.draw.randrange(len(self.jobs)))
        if self.happens():
            return [Ended(job, "its process ended by SIGKILL")]  # before it wrote its line
        if self.happens():
            with self.worker.ledger.file.open("ab") as file:
                file.write(b'{"id": "to')  # the machine was cut off
            raise Killed
        self.worker(job)
        self.maybe("killed")
        return [Ended(job, "its process ended by SIGKILL" if self.happens() else "")]

    def happens(self):
        return self.draw.random() < self.faults

    def maybe(self, what):
        if self.happens():
            raise Killed

    def stop(self):
        self.jobs = []

    def close(self):
        self.jobs = []


def simulated_value(facts):
    """Return a cross-entropy that depends on the job alone."""
    return int(content_hash({key: facts[key] for key in ("arm", "seed", "trial")})[:6], 16) / 2**24


class Simulation:
    """Runs studies with simulated jobs, and counts how often each was performed to its end."""

    def __init__(self, monkeypatch):
        self.performed = []
        monkeypatch.setattr(worker, "perform", self.perform)
        monkeypatch.setattr(scheduler.Scheduler, "build_shared_inputs", lambda self, wanted: None)

    def perform(self, directory, facts):
        self.performed.append(facts["id"])
        value = simulated_value(facts)
        return worker.make_row(
            directory, facts, status="completed", values={"cross_entropy": value, "validation_cross_entropy": value}
        )

    def run(self, study, folder, draw=None, faults=0.0, watch=None, identities=None):
        """Run a study until it is complete, again after each kill; return the agenda."""
        draw, identities = draw or random.Random(0), identities or Identities(study)
        while True:
            directory = StudyDir.create(folder)
            (directory.path / "study.json").write_text(json.dumps(study.as_dict()), encoding="utf-8")
            try:
                with directory.held():
                    run = scheduler.Scheduler(study, directory, identities, watch or Unwatched(), Stop())
                    return run.run(Simulated(directory.path, draw, faults))
            except Killed:
                continue


@pytest.fixture
def simulation(monkeypatch):
    return Simulation(monkeypatch)
