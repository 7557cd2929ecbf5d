"""The ids of jobs: equal where every content is equal, wherever it lies; different as soon as one differs."""

import pickle
import shutil
from pathlib import Path

import pytest
import yaml

from neoplug.errors import RecipeError
from neoplug.studies import jobs
from neoplug.studies.jobs import Identities
from neoplug.studies.specification import read

PARTS = Path(__file__).parent / "broken" / "parts.py"
BASE = {
    "teacher": {"model": "./teacher"},
    "student": {"model": "./student"},
    "data": {"source": "./rows.jsonl", "chat_template": "./chat.jinja", "held_out": 2},
    "loss": {"./parts.py:Labels": {"weight": 1}},
    "train": {"max_steps": 3},
}
STUDY = {
    "base": "base.yaml",
    "axes": {"adapter": {"low": {"./parts.py:Rank": {"r": 4}}, "high": {"./parts.py:Rank@big": {"r": 8}}}},
    "seeds": [0, 1],
    "search": {"train.learning_rate": {"values": [1, 2], "seeds": [5]}},
    "metrics": {"cross_entropy": {}},
}


class Place:
    """A folder with a study and all that it names."""

    def __init__(self, folder, student, teacher, chat):
        self.folder = folder
        folder.mkdir()
        shutil.copytree(student, folder / "student")
        shutil.copytree(teacher, folder / "teacher")
        shutil.copy(chat, folder / "rows.jsonl")
        shutil.copy(PARTS, folder / "parts.py")
        (folder / "chat.jinja").write_text("{{ messages[0]['content'] }}")
        self.write("base.yaml", BASE)
        self.write("study.yaml", STUDY)

    def write(self, name, values):
        (self.folder / name).write_text(yaml.safe_dump(values, sort_keys=False))

    def job(self, arm=0, kind="test", seed=0, rate=1.0, study="study.yaml", overrides=()):
        found = read(self.folder / study, overrides)
        return Identities(found).job(found.arms[arm], kind, seed, {"train.learning_rate": rate})


@pytest.fixture
def make_place(tmp_path, tiny_student, tiny_teacher, tiny_chat):
    return lambda name: Place(tmp_path / name, tiny_student, tiny_teacher, tiny_chat)


def append(path, text):
    path.write_text(path.read_text() + text)


def test_the_id_does_not_depend_on_places_names_order_and_where_a_run_is_reported(make_place):
    here, there = make_place("here"), make_place("there")
    job = here.job()
    assert len(job.id) == 16
    assert set(job.id) <= set("0123456789abcdef")
    (there.folder / "rows.jsonl").rename(there.folder / "other.jsonl")
    (there.folder / "student").rename(there.folder / "pupil")
    changed = {**BASE, "student": {"model": "./pupil"}, "output_dir": "elsewhere", "seed": 77, "report_to": "none"}
    changed["trackers"] = {"tensorboard": {}}
    changed["reference"] = {"claim": "it works", "source": "a paper"}
    changed["data"] = {"held_out": 2, "source": "./other.jsonl", "chat_template": "./chat.jinja", "split": "train"}
    there.write("base.yaml", dict(reversed(changed.items())))
    other = {"name": "other", **STUDY, "seeds": [0, 9], "metrics": {"perplexity": {"margin": 2}}, "keep": "none"}
    other["axes"] = {"rank": {"eight": {"./parts.py:Rank@big": {"r": 8}}, "four": {"./parts.py:Rank": {"r": 4}}}}
    other["axes"] = {"adapter": other["axes"]["rank"], "steps": {"3": {"train.max_steps": 3}}}
    there.write("renamed.yaml", other)
    assert there.job(arm=1, study="renamed.yaml").id == job.id
    assert there.job(arm=1, study="renamed.yaml", kind="search", rate=1).id == job.id


def test_every_content_is_part_of_the_id(make_place):
    place = make_place("here")
    ids = [place.job().id, place.job(seed=1).id, place.job(rate=2.0).id, place.job(arm=1).id]
    ids.append(place.job(overrides=["train.max_grad_norm=0.5"]).id)
    for file, text in (
        ("rows.jsonl", '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'),
        ("chat.jinja", "\n"),
        ("parts.py", "\nADDED = 1\n"),
        ("student/config.json", "\n"),
        ("teacher/config.json", "\n"),
    ):
        append(place.folder / file, text)
        ids.append(place.job().id)
    assert len(set(ids)) == len(ids)


def test_the_version_is_part_of_the_id(make_place, monkeypatch):
    place = make_place("here")
    before = place.job().id
    monkeypatch.setattr(jobs, "version_of", lambda name: "99.0")
    assert place.job().id != before


def test_each_content_is_read_once(make_place, monkeypatch):
    place = make_place("here")
    read_files = []
    monkeypatch.setattr(jobs, "sha256_of", lambda path: read_files.append(path.name) or "0" * 64)
    study = read(place.folder / "study.yaml")
    identities = Identities(study)
    made = [
        identities.job(arm, "search", seed, {"train.learning_rate": rate})
        for arm in study.arms
        for seed in range(10)
        for rate in (1.0, 2.0)
    ]
    assert len({job.id for job in made}) == 40
    assert sorted(read_files) == ["chat.jinja", "parts.py"]
    assert len(identities.contents) == 5  # two models, one source, and these


def test_the_recipe_of_a_job_has_its_seed_and_trial(make_place):
    place = make_place("here")
    study = read(place.folder / "study.yaml")
    job = pickle.loads(pickle.dumps(Identities(study).job(study.arms[1], "search", 5, {"train.learning_rate": 2})))
    checked = job.load(study)
    assert (checked.recipe.seed, checked.recipe.train.learning_rate) == (5, 2.0)
    assert checked.plugins.section("adapter")["./parts.py:Rank@big"].r == 8
    expected = {"arm": {"adapter": "high"}, "kind": "search", "seed": 5, "trial": {"train.learning_rate": 2}}
    assert job.as_dict() == {"id": job.id, **expected}


def test_a_model_that_is_not_there_is_refused_with_its_place(make_place):
    place = make_place("here")
    shutil.rmtree(place.folder / "teacher")
    (place.folder / "teacher").mkdir()
    with pytest.raises(RecipeError, match=r"base\.yaml:2:10"):
        place.job()
