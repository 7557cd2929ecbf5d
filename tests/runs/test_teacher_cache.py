"""A teacher's cache in complete runs, against runs of the teacher's model: numbers, what is computed, and damage."""

import json
import shutil
import threading
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from neoplug import recipe as recipes
from neoplug.distributed.world import World
from neoplug.errors import NeoplugError, PluginError, RecipeError, UsageError
from neoplug.files import write_atomically
from neoplug.files.contents import record
from neoplug.models import verify
from neoplug.runs import teacher_build
from neoplug.runs.inputs import resolve_inputs
from neoplug.runs.model_loader import ModelLoader
from neoplug.runs.plan import plan
from neoplug.runs.progress import Silent
from neoplug.teachers import cache_files
from neoplug.teachers.cached import CachedTeacher
from tests.commands import start_ranks

EXACT = {"states": {"dtype": "float32"}}
ONE_ROW = {"per_device_train_batch_size": 1}  # the batches of a run are then those of the build
TEMPLATE = "Be wise.\n{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}"


@pytest.fixture
def computed(monkeypatch):
    """Return a list to which the content hash of each document that the teacher is run on is added."""
    seen, states_of = [], teacher_build.states_of

    def recording(teacher, documents):
        seen.extend(document.as_teacher().content_hash for document in documents)
        return states_of(teacher, documents)

    monkeypatch.setattr(teacher_build, "states_of", recording)
    return seen


def complete(file, *overrides):
    """Complete the cache of a recipe, as a run does before it begins; return it."""
    checked = recipes.load(file, overrides)
    with checked.marking():
        inputs = resolve_inputs(checked, Silent())
        return teacher_build.with_cache(checked, inputs, World(), Silent()).cache


def folder_of(home):
    """Return the only cache in neoplug's folder."""
    (found,) = (path for path in (home / "teachers").iterdir() if path.is_dir())
    return found


@pytest.mark.parametrize(
    "sections",
    [
        {"probes": {"calibration": {}}, "evaluate": {"eval_steps": 3}},
        {"teacher": {"chat_template": TEMPLATE}, "data": {"packing": True}},
        {"loss": {"reverse_kl": {"weight": 2.0, "calibrate": "forward_kl"}, "taid": {}},
         "token_weights": {"teacher_entropy": {}}, "train": {"log_gradient_norms": True, "logging_steps": 2}},
    ],
    ids=["probes", "a prompt for the teacher, packed", "any loss"],
)  # fmt: skip
def test_a_run_from_float32_states_is_the_live_run_bit_for_bit(lab, home, sections):
    sections = sections | {"train": ONE_ROW | sections.get("train", {})}
    teacher = sections.pop("teacher", {})
    live = lab.run("live", teacher=teacher, **sections)
    cached = lab.run("cached", teacher=teacher | {"cache": EXACT}, **sections)
    assert cached.facts == live.facts
    assert cached.adapter_bytes == live.adapter_bytes
    for name in ("before", "after", "evaluations", "teacher"):
        assert cached.result.get(name) == live.result.get(name)
    assert "cache" not in live.lock["models"]["teacher"]


@pytest.mark.parametrize("layout", verify.LAYOUTS)
def test_each_layout_gives_the_numbers_of_the_live_run(lab, home, monkeypatch, layout):
    monkeypatch.setattr(verify, "LAYOUTS", {layout: verify.LAYOUTS[layout]})
    sections = {"train": {"max_steps": 2} | ONE_ROW, "data": {"packing": True}}
    live = lab.run("live", **sections)
    assert lab.run("cached", teacher={"cache": EXACT}, **sections).facts == live.facts


def test_treatments_that_keep_the_text_give_the_numbers_of_the_live_run(lab, home, drop):
    lab.plugin("noise", """
    @dataclass(eq=False)
    class Relabel:
        @hookimpl
        def edit_batch(self, batch):
            batch.labels = batch.labels.flip(0)
    """)  # fmt: skip
    sections = {"train": ONE_ROW, "treatments": {drop: {"rows": [0, 3, 5]}, "./noise.py:Relabel": {}}}
    lab.plugin("half", """
    @dataclass(eq=False)
    class Half:
        '''Drops every second answer token.'''
        @hookimpl
        def edit_batch(self, batch):
            for name in ("positions", "labels", "rows"):
                setattr(batch, name, getattr(batch, name)[::2])
    """)  # fmt: skip
    sections["treatments"]["./half.py:Half"] = {}
    live = lab.run("live", **sections)
    cached = lab.run("cached", teacher={"cache": EXACT}, **sections)
    assert cached.facts == live.facts


def test_a_treatment_that_changes_the_text_is_refused_by_name(lab, home):
    lab.plugin("shout", """
    @dataclass(eq=False)
    class Shout:
        @hookimpl
        def edit_batch(self, batch):
            batch.input_ids = batch.input_ids.flip(0)
    """)  # fmt: skip
    with pytest.raises(PluginError, match=r"Shout` in `edit_batch` changed `input_ids`") as refused:
        lab.run("cached", teacher={"cache": EXACT}, treatments={"./shout.py:Shout": {}})
    assert "leave `teacher.cache` out" in str(refused.value)


def test_narrow_states_are_near_the_live_run(lab, home):
    """The states are rounded by at most 2**-9 of each value, or 1/254 of the largest of 64."""
    live = lab.run("live")
    for dtype in ("bfloat16", "int8"):
        cached = lab.run(dtype, teacher={"cache": {"states": {"dtype": dtype}}})
        for ours, theirs in zip(cached.lines, live.lines, strict=True):
            assert ours["losses"]["forward_kl"] == pytest.approx(theirs["losses"]["forward_kl"], rel=5e-2)
            assert ours["losses"]["forward_kl"] != theirs["losses"]["forward_kl"]
        for name, value in live.result["before"].items():  # held-out text is stored in float32
            if isinstance(value, float):
                assert cached.result["before"][name] == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_entries_train_and_say_what_they_are(lab, home):
    live = lab.run("live", loss={"forward_kl": {}})
    sampled = lab.run("sampled", teacher={"cache": {"sampled": {"entries": 64}}}, loss={"forward_kl": {}})
    largest = lab.run("largest", teacher={"cache": {"top_k": {"k": 200}}}, loss={"forward_kl": {}})
    assert {line["teacher_signal"] for line in sampled.lines} == {"sampled"}
    assert not any("teacher_signal" in line for line in [*largest.lines, *live.lines])
    for run in (sampled, largest):
        for name in ("forward_kl", "jsd", "cross_entropy"):  # evaluation reads the whole distribution
            assert run.result["before"][name] == pytest.approx(live.result["before"][name], rel=1e-5)
        assert run.result["after"]["forward_kl"] == pytest.approx(live.result["after"]["forward_kl"], rel=0.2)


OTHER_RUNS = {
    "packed": {"data": {"packing": True}},
    "other batches, another order": {
        "train": {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 1},
        "seed": 7,
    },
    "a subset, other losses, several epochs": {
        "data": {"max_rows": 9},
        "loss": {"jsd": {}},
        "train": {"max_steps": 7},
    },
}


@pytest.fixture(scope="module")
def full(module_lab, evaluation_chat, tmp_path_factory):
    """Return a lab, sections of a run over all rows, and the folder with its cache."""
    sections = {"data": {"eval_source": str(evaluation_chat), "held_out": None}}
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOPLUG_HOME", str(home))
        complete(module_lab.recipe(teacher={"cache": EXACT}, **sections))
    return module_lab, sections, home


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_other_runs_on_the_same_text_compute_nothing(full, monkeypatch, name):
    lab, sections, home = full
    merged = sections | OTHER_RUNS[name]
    merged["data"] = sections["data"] | OTHER_RUNS[name].get("data", {})
    live = lab.run(f"live-{name}", **merged)
    monkeypatch.setenv("NEOPLUG_HOME", str(home))
    monkeypatch.setattr(ModelLoader, "load_teacher_model", lambda self: pytest.fail("the teacher is loaded"))
    before = sorted(path for path in folder_of(home).rglob("*") if path.is_file())
    cached = lab.run(f"cached-{name}", teacher={"cache": EXACT}, **merged)
    assert sorted(path for path in folder_of(home).rglob("*") if path.is_file()) == before
    for ours, theirs in zip(cached.lines, live.lines, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_of_more_documents_only_the_new_are_computed(lab, home, computed, evaluation_chat):
    data = {"eval_source": str(evaluation_chat), "held_out": None}
    complete(lab.recipe(teacher={"cache": EXACT}, data=data | {"max_rows": 9}))
    first, computed[:] = set(computed), []
    complete(lab.recipe(teacher={"cache": EXACT}, data=data))
    assert len(computed) == len(set(computed)) == 24 - 9
    assert not first & set(computed)


def test_a_run_reads_only_the_rows_of_its_steps(lab, home, computed):
    """Two steps of four rows each, and the three held-out ones; the fitted sample adds none that is stored."""
    complete(lab.recipe(teacher={"cache": EXACT}, train={"max_steps": 2}))
    folder = folder_of(home)
    counts = [len(load_file(file)["documents"]) for file in (folder / "train").iterdir()]
    assert sum(counts) == 2 * 4


@pytest.mark.parametrize(
    "sections",
    [
        {"teacher": {"dtype": "bfloat16"}},
        {"teacher": {"chat_template": TEMPLATE}},
        {"teacher": {"cache": {"states": {"dtype": "bfloat16"}}}},
    ],
)
def test_another_teacher_has_another_cache_or_other_records(lab, home, computed, sections):
    complete(lab.recipe(teacher={"cache": EXACT}))
    first, computed[:] = set(computed), []
    complete(lab.recipe(teacher={"cache": EXACT} | sections["teacher"]))
    assert len(set(computed)) == len(first)


def test_changed_weights_under_the_same_name_are_another_teacher(lab, home, computed, tiny_teacher, tmp_path):
    copy = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    complete(lab.recipe(teacher={"model": str(copy), "cache": EXACT}))
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    from safetensors.torch import save_file

    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    first = len(computed)
    complete(lab.recipe(teacher={"model": str(copy), "cache": EXACT}))
    assert len(computed) == 2 * first
    assert len([path for path in (home / "teachers").iterdir() if path.is_dir()]) == 2


def damage_flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(bytes(content))


def damage_cut(file):
    file.write_bytes(file.read_bytes()[:-7])


# benchmarks/faults.py damages each file in each way.
DAMAGED = [
    ("header.json", damage_cut), ("header.json", Path.unlink), ("head.safetensors", damage_flip),
    ("contents.json", Path.unlink), ("teacher/config.json", damage_flip), ("teacher/tokenizer.json", Path.unlink),
    ("train", damage_flip), ("train", damage_cut), ("train", Path.unlink), ("held_out", damage_flip),
    ("probes", damage_flip),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(module_lab, tmp_path_factory):
    """Return a recipe, its complete cache, and the folder that holds it."""
    home = tmp_path_factory.mktemp("home")
    file = module_lab.recipe(
        teacher={"cache": {"sampled": {"bytes": 30}}}, probes={"calibration": {}}, loss={"forward_kl": {}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOPLUG_HOME", str(home))
        return file, complete(file), home


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "damage"), DAMAGED)
def test_damage_is_reported_and_repaired(whole, home, caplog, name, damage):
    file, first, pristine = whole
    shutil.copytree(pristine, home)
    folder = folder_of(home)
    before, target = contents(folder), folder / name
    if target.is_dir():
        target = next(path for path in target.rglob("*") if path.name != "contents.json" and path.is_file())
    damage(target)
    again = complete(file)
    assert again.header == first.header
    assert again.probes == first.probes
    assert contents(folder) == before
    is_only_absent = damage is Path.unlink and name in ("header.json", "train", "held_out")
    reported = [record.getMessage() for record in caplog.records if "is damaged" in record.getMessage()]
    assert len(reported) == (0 if is_only_absent else 1)
    assert all(target.name in message for message in reported)


def test_a_foreign_shard_is_reported_and_removed(lab, home, caplog):
    complete(lab.recipe(teacher={"cache": EXACT}))
    theirs = next((folder_of(home) / "train").iterdir())
    shutil.move(folder_of(home), home / "other")
    file = lab.recipe(teacher={"cache": {"states": {"dtype": "bfloat16"}}})
    complete(file)
    target = folder_of(home) / "train" / theirs.name
    shutil.copy(home / "other" / "train" / theirs.name, target)
    caplog.clear()
    complete(file)
    assert f"train/{theirs.name} is a shard of another cache" in caplog.text
    assert not target.exists()


def test_a_teacher_in_another_dtype_reads_no_other_cache_under_its_name(lab, home, caplog, computed):
    """A whole folder that was copied to the key of another cache."""
    complete(lab.recipe(teacher={"cache": EXACT}))
    first = folder_of(home)
    other = complete(lab.recipe(teacher={"cache": {"states": {"dtype": "bfloat16"}}}))
    shutil.rmtree(other.folder)
    shutil.copytree(first, other.folder)
    computed.clear()
    again = complete(lab.recipe(teacher={"cache": {"states": {"dtype": "bfloat16"}}}))
    assert again.header == other.header
    assert "its header is that of another teacher or kind" in caplog.text
    assert len(set(computed)) == 24


SLOW_KIND = """
from neoplug.teachers import cache_files
from neoplug_teachers.states import States

cache_files.SHARD_TOKENS = 20

@dataclass(eq=False)
class Slow(States):
    '''States that are encoded only while the file "go" has as many lines as documents; each document is counted.'''

    @hookimpl
    def encode_teacher(self, states):
        folder = Path(__file__).parent
        with (folder / "count").open("a") as file:
            file.write("x\\n")
        done = len((folder / "count").read_text().splitlines())
        while done > int((folder / "limit").read_text()):
            (folder / "waiting").touch()
            time.sleep(0.01)
        return super().encode_teacher(states)
"""


def limit(lab, documents):
    write_atomically(lab.folder / "limit", str(documents))


@pytest.fixture
def slow(lab, monkeypatch):
    """Return a recipe whose kind of cache counts documents in `count` and waits after as many as `limit` says."""
    monkeypatch.setattr(cache_files, "SHARD_TOKENS", 20)  # the plugin sets it, and it is restored afterwards
    lab.plugin("slow", SLOW_KIND)
    limit(lab, 1000)
    return slow_recipe(lab)


def slow_recipe(lab, **train):
    teacher = {"cache": {"./slow.py:Slow": {"dtype": "float32"}}}
    return lab.recipe("slow", teacher=teacher, train=ONE_ROW | train)


def wait_for(file, process):
    while not file.exists():
        assert process.is_alive(), "the process ended before it wrote the file"
        threading.Event().wait(0.01)


@pytest.mark.slow
def test_a_killed_build_goes_on_where_it_was(lab, home, slow, caplog):
    limit(lab, 7)
    process = lab.start(slow, "killed")
    wait_for(lab.folder / "waiting", process)
    process.kill()
    process.end()
    folder = folder_of(home)
    kept = [len(load_file(file)["documents"]) for file in (folder / "train").glob("*.safetensors")]
    assert 0 < sum(kept) <= 7
    (folder / "train" / f".{'0' * 64}.safetensors.1234abcd.partial").write_bytes(b"half")
    limit(lab, 1000)
    (lab.folder / "count").unlink()
    ran = lab.run("again", slow)
    assert len((lab.folder / "count").read_text().splitlines()) == 12 - sum(kept)  # six steps of two rows
    live = lab.run("live", train=ONE_ROW)
    assert ran.facts == live.facts
    assert not list(folder.rglob("*.partial"))
    assert not [record for record in caplog.records if "is damaged" in record.getMessage()]


def test_a_build_that_is_stopped_keeps_every_document(lab, home, monkeypatch, computed):
    recording = teacher_build.states_of

    def stopping(teacher, documents):
        if len(computed) == 12 + 4:  # all twelve documents are in the sample that is fitted
            raise KeyboardInterrupt
        return recording(teacher, documents)

    monkeypatch.setattr(teacher_build, "states_of", stopping)
    file = lab.recipe(teacher={"cache": EXACT}, train=ONE_ROW)
    with pytest.raises(KeyboardInterrupt):
        complete(file)
    (shard,) = (folder_of(home) / "train").iterdir()
    assert len(load_file(shard)["documents"]) == 4
    monkeypatch.setattr(teacher_build, "states_of", recording)
    computed.clear()
    complete(file)
    assert len(computed) == 12 - 4 + 3  # and the held-out ones


@pytest.mark.slow
def test_two_builders_share_the_work(lab, home, slow):
    limit(lab, 3)
    first = lab.start(slow, "first")
    wait_for(lab.folder / "waiting", first)
    second = lab.start(slow, "second")
    while "waiting for another process" not in second.out:
        assert second.is_alive()
        threading.Event().wait(0.01)
    limit(lab, 1000)
    assert (first.end().exitcode, second.end().exitcode) == (0, 0)
    assert len((lab.folder / "count").read_text().splitlines()) == 12
    assert lab.at("first").facts == lab.at("second").facts


def two_ranks(*words):
    """Run a command of neoplug on two ranks; return what they printed."""
    ended = [rank.end() for rank in start_ranks(2, *words)]
    assert not any(rank.exitcode for rank in ended), "\n".join(rank.err for rank in ended)
    return "".join(rank.out for rank in ended)


@pytest.mark.slow
def test_ranks_share_the_documents(lab, home, slow):
    """The estimate, whose sample is not stored, is printed once; runs of any number of ranks then compute nothing."""
    assert two_ranks("cache", str(slow)).count("to compute") == 1
    counted = (lab.folder / "count").read_text().splitlines()
    stored = [load_file(file)["documents"] for file in (folder_of(home) / "train").glob("*.safetensors")]
    assert sum(map(len, stored)) == 21  # six steps of four rows: an epoch
    two_ranks("run", str(slow), "--output", str(lab.folder / "two"))
    one = lab.run("one", slow_recipe(lab, gradient_accumulation_steps=4))
    assert (lab.folder / "count").read_text().splitlines() == counted
    for ours, theirs in zip(lab.at("two").lines, one.lines, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_the_training_loop_reads_records_in_a_thread(lab, home, monkeypatch):
    readers, read = [], CachedTeacher._read

    def recording(self, wanted):
        readers.append((wanted.draw is not None, threading.current_thread() is threading.main_thread()))
        return read(self, wanted)

    monkeypatch.setattr(CachedTeacher, "_read", recording)
    lab.run("cached", teacher={"cache": EXACT})
    training = [is_main for trains, is_main in readers if trains]
    assert training == [True, *[False] * (5 * 2)]  # steps of two micro-batches, the sixth of one: all but the first


def test_each_epoch_reads_the_next_draw(lab, home, monkeypatch):
    read, draws = CachedTeacher._read, []

    def recording(self, wanted):
        draws.append(wanted.draw)
        return read(self, wanted)

    monkeypatch.setattr(CachedTeacher, "_read", recording)
    kind = {"sampled": {"entries": 4, "draws": 2}}
    data = {"packing": False, "held_out": 20}
    train = {"max_steps": 5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    lab.run("cached", teacher={"cache": kind}, loss={"forward_kl": {}}, data=data, train=train)
    assert [draw for draw in draws if draw is not None] == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]
    folder = folder_of(home)
    (file,) = (folder / "train").iterdir()
    shard = load_file(file)
    assert shard["starts"].shape == (4, 3)
    pieces = [bytes(shard["records"][a:b].numpy()) for row in shard["starts"].tolist() for a, b in pairwise(row)]
    assert len(set(pieces)) == 8  # other random numbers for each document and draw


@pytest.mark.slow
def test_a_resumed_run_goes_on_bit_for_bit_and_refuses_another_cache(lab, home):
    sections = {"teacher": {"cache": {"sampled": {"bytes": 30, "draws": 2}}}, "loss": {"forward_kl": {}}}
    whole = lab.run("whole", **sections)
    file = lab.recipe("resumed", **sections)
    shutil.copytree(lab.folder / "whole", lab.folder / "part")
    part = lab.folder / "part"
    for name in ("adapter", "checkpoints/step-6", "checkpoints/step-4"):
        shutil.rmtree(part / name)
    (part / "result.json").unlink()
    (part / "recipe.yaml").write_text((lab.folder / "whole" / "recipe.yaml").read_text())
    resumed = lab.run("part", lab.recipe("whole-recipe", **sections), resume=True)
    assert resumed.facts == whole.facts
    assert resumed.adapter_bytes == whole.adapter_bytes

    lock = json.loads((part / "lock.json").read_text())
    assert lock["models"]["teacher"]["cache"]["key"] == folder_of(home).name
    lock["models"]["teacher"]["cache"]["sha256"] = "0" * 64
    (part / "lock.json").write_text(json.dumps(lock))
    shutil.rmtree(part / "adapter")
    (part / "result.json").unlink()
    record(part, "lock.json", "result.json", "adapter")
    with pytest.raises(NeoplugError, match=r"cache\.sha256"):
        lab.run("part", file, resume=True)


@pytest.fixture(scope="module")
def built(module_lab, tmp_path_factory):
    """Return a complete cache of exact states, and the run of the teacher's model."""
    home, sections = tmp_path_factory.mktemp("home"), {"train": ONE_ROW, "probes": {"calibration": {}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOPLUG_HOME", str(home))
        complete(module_lab.recipe(teacher={"cache": EXACT}, **sections))
    return folder_of(home), module_lab.run("the model", **sections)


@pytest.fixture
def stored(built, home, tmp_path):
    """Return a copy of the complete cache, where neoplug's own folder has none; and the run of the teacher's model."""
    folder, live = built
    return shutil.copytree(folder, tmp_path / "stored"), live


def stored_recipe(lab, folder, **sections):
    teacher = {"model": None, "dtype": "float32", "cache": {"stored": {"path": str(folder)}}}
    teacher = {key: value for key, value in teacher.items() if value is not None}
    lab.base = {**lab.base, "teacher": teacher}
    return lab.recipe("stored-recipe", **{"train": ONE_ROW, "probes": {"calibration": {}}, **sections})


def test_a_folder_replaces_the_model(lab, home, stored, monkeypatch):
    folder, live = stored
    monkeypatch.setattr(ModelLoader, "load_teacher_model", lambda self: pytest.fail("the teacher is loaded"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = lab.run("found", stored_recipe(lab, folder))
    assert found.facts == live.facts
    assert found.adapter_bytes == live.adapter_bytes
    assert found.result["teacher"] == live.result["teacher"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    planned = plan(recipes.load(stored_recipe(lab, folder)))
    assert "teacher_cache" not in planned["disk_bytes"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("header.json", damage_flip), ("head.safetensors", damage_cut), ("contents.json", Path.unlink),
        ("teacher/config.json", Path.unlink), ("train", damage_flip), ("train", Path.unlink),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused_and_left_alone(lab, stored, name, damage):
    folder, _ = stored
    target = next((folder / name).iterdir()) if name == "train" else folder / name
    damage(target)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError) as refused:
        complete(stored_recipe(lab, folder))
    assert "stored-recipe.yaml:" in str(refused.value)
    assert target.name in str(refused.value) or str(target.parent) in str(refused.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_without_the_recipes_documents_is_refused(lab, stored, evaluation_chat):
    folder, _ = stored
    data = {"eval_source": str(evaluation_chat), "held_out": None}
    with pytest.raises(RecipeError, match=r"has no record of \d+ of the 12 training documents that this run reads"):
        complete(stored_recipe(lab, folder, data=data))


def test_a_folder_that_holds_no_cache_is_refused(lab, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(RecipeError, match="holds no teacher's cache"):
        complete(stored_recipe(lab, tmp_path / "nothing"))


@pytest.fixture
def hostile(stored, tmp_path):
    """Return a cache whose folder has Python files, which its configuration and tokenizer name, and what they leave."""
    folder, trace = stored[0], tmp_path / "ran"
    for file in (folder / "code.py", folder / "teacher" / "code.py"):
        file.write_text(f"open({str(trace)!r}, 'w')\nKind = object\n")
    for name, auto in (("config", "AutoConfig"), ("tokenizer_config", "AutoTokenizer")):
        file = folder / "teacher" / f"{name}.json"
        settings = json.loads(file.read_text()) | {"auto_map": {auto: "code.Kind"}}
        file.write_text(json.dumps(settings))
    rewrite_record(folder)
    return folder, trace


def rewrite_record(folder):
    (folder / "contents.json").unlink()
    record(folder, "header.json", "head.safetensors", "source.json", "teacher")


def test_a_folder_is_data_whose_code_does_not_run(lab, hostile):
    folder, trace = hostile
    file = stored_recipe(lab, folder)
    complete(file, "teacher.trust_remote_code=true")
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["./code.py:Kind", "lora"])
def test_a_folder_names_no_code_as_its_kind(lab, hostile, kind):
    folder, trace = hostile
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps(header | {"kind": {"name": kind, "options": {}}}))
    rewrite_record(folder)
    with pytest.raises(RecipeError, match="no installed package has"):
        complete(stored_recipe(lab, folder))
    assert not trace.exists()


def test_a_loss_that_reads_more_than_a_folder_stores_is_refused_before_anything_is_loaded(lab, home, tmp_path):
    complete(lab.recipe(teacher={"cache": {"sampled": {}}}, loss={"forward_kl": {}}))
    shutil.move(folder_of(home), tmp_path / "stored")
    file = stored_recipe(lab, tmp_path / "stored", loss={"reverse_kl": {}})
    with pytest.raises(RecipeError, match="reverse_kl"):
        complete(file)


@pytest.mark.parametrize(
    "kind", [EXACT, {"sampled": {"bytes": 30}}, {"top_k": {"k": 8}}], ids=["states", "sampled", "top"]
)
def test_the_plan_has_no_backbone_and_the_size_of_the_cache(lab, home, kind):
    live = plan(recipes.load(lab.recipe(loss={"forward_kl": {}})))
    file = lab.recipe(teacher={"cache": kind}, loss={"forward_kl": {}})
    planned = plan(recipes.load(file))
    head = 384 * 64 * 4
    assert planned["memory_bytes"]["teacher_weights"] == head < live["memory_bytes"]["teacher_weights"]
    assert planned["memory_bytes"]["teacher_output"] > 0
    complete(file)
    folder = folder_of(home)
    files = [*folder.glob("*/*.safetensors"), folder / "head.safetensors"]
    assert planned["disk_bytes"]["teacher_cache"] == pytest.approx(sum(f.stat().st_size for f in files), rel=0.15)


def test_an_adapted_head_is_stored_as_a_linear_layer(tiny_teacher):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from neoplug.models.head import Head
    from neoplug.models.vocabulary import Vocabulary

    torch.manual_seed(0)
    config = LoraConfig(target_modules=["lm_head"], r=4, init_lora_weights=False)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # raised within peft
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32), config).eval()
    head, states = model.base_model.model.lm_head, torch.randn(5, 64)
    linear = Head(head, Vocabulary(384)).effective_linear(64)
    assert type(linear) is torch.nn.Linear
    torch.testing.assert_close(linear(states), head(states), rtol=1e-4, atol=1e-4)
    assert not any(weight.requires_grad for weight in linear.parameters())


def test_a_disk_that_is_full_is_an_error_with_a_remedy(lab, home, monkeypatch):
    from neoplug.errors import DiskError

    def full(path, content):
        raise DiskError(path, "No space left on device")

    monkeypatch.setattr(cache_files, "write_atomically", full)
    with pytest.raises(UsageError, match="NEOPLUG_HOME"):
        complete(lab.recipe(teacher={"cache": EXACT}))
