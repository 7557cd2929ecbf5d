"""`neoplug cache`: what it says before it builds, the folder for another machine, and the list of caches."""

import json
import math
import re
import shutil

import pytest
import torch

from neoplug.runs.teacher_caches import list_caches
from neoplug.runs.teacher_estimate import compare, divergence


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return an empty folder for neoplug's cache."""
    monkeypatch.setenv("NEOPLUG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def build(neoplug, recipe, home):
    """Return a function that builds the tiny recipe's cache with overrides, and returns what is printed."""

    def build(*arguments):
        answer = neoplug("cache", recipe, "loss={forward_kl: {}}", "teacher.dtype=float32", *arguments)
        assert answer.code == 0, answer.err
        return answer.out

    return build


def number(text, pattern):
    return float(re.search(pattern, text)[1].replace(",", ""))


def test_it_says_size_time_and_error_before_it_builds_and_nothing_when_all_is_there(build):
    said = build("teacher.cache={states: {dtype: float32}}")
    assert said.index("to compute") < said.index("computing the teacher's output")
    assert number(said, r"gradient ([\d.]+) degrees") < 0.01
    assert number(said, r"degrees from the teacher's, ([\d.]+) times") == pytest.approx(1, abs=1e-3)
    assert number(said, r"([\d.,]+) bytes of a training") == pytest.approx(4 * 64, rel=0.2)
    assert re.search(r"about \d+:\d\d on this machine", said)
    again = build("teacher.cache={states: {dtype: float32}}")
    assert "to compute" not in again
    assert "computing" not in again


def test_the_error_shrinks_with_the_entries(build):
    angles = [
        number(build(f"teacher.cache={{sampled: {{entries: {entries}}}}}"), r"gradient ([\d.]+) degrees")
        for entries in (2, 16, 128)
    ]
    assert angles == sorted(angles, reverse=True)
    assert angles[0] > 1


def test_a_folder_for_another_machine_is_complete(build, neoplug, recipe, home, tmp_path):
    build("teacher.cache={states: {dtype: float32}}", "--output", str(tmp_path / "out"))
    shutil.rmtree(home / "teachers")
    stored = [f"teacher.cache={{stored: {{path: {tmp_path / 'out'}}}}}", "teacher.model=null", "loss={forward_kl: {}}"]
    answer = neoplug("plan", recipe, *stored, "--json")
    assert answer.code == 0, answer.err
    assert "teacher_cache" not in json.loads(answer.out)["disk_bytes"]
    answer = neoplug("run", recipe, *stored, "--output", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert not (home / "teachers").exists()


def test_an_output_that_exists_is_refused_before_anything_is_read(neoplug, recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    answer = neoplug("cache", recipe, "teacher.cache={states: {}}", "--output", str(tmp_path / "out"))
    assert answer.code == 2
    assert "exists already" in answer.err
    answer = neoplug("cache", recipe, "teacher.cache={states: {}}", "--output", str(tmp_path / ("out" * 100)))
    assert answer.code == 2
    assert "fix: choose a shorter --output" in answer.err


def test_caches_are_listed_verified_and_removed(build, neoplug, home):
    assert "no teacher's cache" in neoplug("cache", "--list").out
    build("teacher.cache={states: {}}")
    build("teacher.cache={top_k: {k: 8}}")
    first, second = list_caches()
    listed = neoplug("cache", "--list").out
    assert first.key[:12] in listed
    assert "top_k" in listed
    assert neoplug("cache", "--verify").out.count("intact") == 2

    shard = next((home / "teachers" / first.key / "train").iterdir())
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    answer = neoplug("cache", "--verify", first.key[:12])
    assert answer.code == 1
    assert f"train/{shard.name} does not match its hash" in answer.out
    assert neoplug("cache", "--verify", second.key).code == 0

    answer = neoplug("cache", "--remove", first.key[:12])
    assert answer.code == 0
    assert [facts.key for facts in list_caches()] == [second.key]
    answer = neoplug("cache", "--remove", "feed")
    assert answer.code == 2
    assert "no cache has the key `feed`" in answer.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--list", "--verify"],
        ["--list", "abc"],
        ["--remove"],
        ["--verify", "abc", "train.max_steps=1"],
    ],
)
def test_arguments_that_mean_nothing_are_refused(neoplug, home, arguments):
    assert neoplug("cache", *arguments).code == 2


def test_a_recipe_without_a_cache_is_told_how(neoplug, recipe, home):
    answer = neoplug("cache", recipe)
    assert answer.code == 2
    assert "teacher.cache={KIND: {}}" in answer.err


def test_angle_and_ratio_in_closed_form():
    angle, ratio = compare([torch.tensor([1.0, 0.0]), torch.tensor([1.0])], [torch.tensor([2.0, 0.0]), torch.zeros(1)])
    assert angle == pytest.approx(45)
    assert ratio == pytest.approx(math.sqrt(2) / 2)
    assert math.isnan(compare([torch.zeros(1)], [torch.ones(1)])[0])


def test_the_divergence_of_stored_entries_in_closed_form():
    from neoplug import EntriesSignal, SparseDistributions, StatesSignal
    from neoplug.models.head import Head
    from neoplug.models.vocabulary import Vocabulary

    p = torch.tensor([0.5, 0.25, 0.125, 0.125])
    head = Head(torch.nn.Linear(1, 4).requires_grad_(False), Vocabulary(4))
    head.module.weight.zero_()
    head.module.bias.copy_(p.log())
    exact = StatesSignal(torch.zeros(1, 1), head)
    ids, q = torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.2]])
    buckets = EntriesSignal(SparseDistributions(ids, q, torch.zeros(1), rest=torch.tensor([0.2])))
    expected = 0.6 * math.log(0.6 / 0.5) + 0.2 * math.log(0.2 / 0.25) + 0.2 * math.log(0.2 / 0.25)
    assert divergence(buckets, exact, 1) == pytest.approx(expected, rel=1e-5)
    sample = EntriesSignal(SparseDistributions(ids, torch.tensor([[0.75, 0.25]]), torch.zeros(1)))
    assert divergence(sample, exact, 1) == pytest.approx(0.75 * math.log(1.5), rel=1e-5)
    assert divergence(exact, exact, 1) == pytest.approx(0, abs=1e-6)


def test_eval_reads_the_cache_and_computes_held_out_documents_only(neoplug, recipe, home, tiny_student):
    overrides = ["teacher.dtype=float32", "student.dtype=float32", "--json"]
    live = neoplug("eval", tiny_student, recipe, *overrides)
    cached = neoplug("eval", tiny_student, recipe, "teacher.cache={states: {}}", *overrides)
    assert cached.code == 0, cached.err
    assert json.loads(cached.out) == json.loads(live.out)
    (facts,) = list_caches()
    assert facts.documents == (0, 4)
