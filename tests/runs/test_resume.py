"""A run that is interrupted and resumed equals the uninterrupted run, bit for bit."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neoplug.errors import PluginError, UsageError
from neoplug.files.contents import record, recorded

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from damage import WAYS

TRIP = """
import fcntl
from contextlib import suppress


@dataclass(eq=False)
class Trip:
    '''Interrupts the run at the place named in a file: "save 4 raise", "step 5 kill", "end 0 raise".'''

    file: str

    def at(self, place, step):
        if not Path(self.file).exists():
            return
        where, number, what = Path(self.file).read_text().split()
        if (where, int(number)) == (place, step):
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("tripped")

    def find_locked(self, run):
        with (run / ".lock").open() as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise AssertionError("another process could resume this run now")

    @hookimpl
    def on_save(self, path):
        (path / "mine.txt").write_text("kept with the checkpoint")
        self.find_locked(path.parents[1])
        self.at("save", int(path.name.split("step-")[1].split(".")[0]))

    @hookimpl
    def on_step_end(self, step):
        self.at("step", step)

    @hookimpl
    def on_train_end(self):
        self.at("end", 0)
"""
REMEMBERS = """
@dataclass(eq=False)
class Remembers:
    '''Edits a batch depending on the number of all answer tokens before it.'''

    seen: int = 0

    @hookimpl
    def edit_batch(self, batch):
        self.seen += len(batch.labels)
        batch.labels = batch.labels.clone()
        batch.labels[: self.seen % 7] = 5

    @hookimpl
    def on_step_end(self):
        return {"seen": self.seen}

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]
"""


LOSS = {  # the target of taid depends on all previous losses; weights are calibrated once, then scheduled
    "cross_entropy": {"schedule": "linear"},
    "taid": {"alpha": 1.0, "weight": 0.5, "calibrate": "forward_kl"},
}


class Interruptible:
    """One recipe that uses every random stream, and a switch that interrupts its runs."""

    def __init__(self, lab):
        self.lab = lab
        lab.plugin("trip", TRIP)
        lab.plugin("remembers", REMEMBERS)
        self.switch = lab.folder / "switch.txt"
        self.recipe = lab.recipe(
            "interruptible",
            adapter={"lora": {"r": 4, "lora_dropout": 0.3, "target_modules": ["q_proj", "v_proj"]}},
            loss=LOSS,
            treatments={
                "label_noise": {"probability": 0.3},
                "token_dropout": {"probability": 0.3},
                "./remembers.py:Remembers": {},
            },
            probes={"./trip.py:Trip": {"file": str(self.switch)}},
            evaluate={"eval_steps": 3},
            train={"max_steps": 7, "save_steps": 2, "logging_steps": 1},
        )

    def run(self, output, trip=None, *, resume=False):
        """Run in this process; with `trip`, up to the place of the interruption."""
        self.switch.write_text(trip or "nowhere 0 raise")
        if trip is None:
            return self.lab.run(output, self.recipe, resume=resume)
        with pytest.raises(PluginError, match="OSError: tripped"):
            self.lab.run(output, self.recipe, resume=resume)
        return self.lab.at(output)

    def process(self, output, trip=None, *, resume=False):
        """Start the command in a separate process."""
        self.switch.write_text(trip or "nowhere 0 raise")
        return self.lab.start(self.recipe, output, *(["--resume"] if resume else []))


@pytest.fixture(scope="module")
def interruptible(module_lab):
    return Interruptible(module_lab)


@pytest.fixture(scope="module")
def uninterrupted(interruptible):
    return interruptible.run("uninterrupted")


def assert_same(run, reference):
    clock = ("seconds", "peak_memory_bytes")
    assert run.facts == reference.facts
    assert run.adapter_bytes == reference.adapter_bytes
    ours, theirs = ({k: v for k, v in r.result.items() if k not in clock} for r in (run, reference))
    assert ours == theirs
    assert run.steps_saved == reference.steps_saved
    assert run.hidden_leftovers == []


def test_the_uninterrupted_run_uses_every_random_stream(uninterrupted, interruptible, lab):
    """Otherwise equality after a resume would show little."""
    plain = lab.run("plain", loss=LOSS, train={"max_steps": 2})
    assert [line["losses"] for line in plain.lines] != [line["losses"] for line in uninterrupted.lines[:2]]
    assert [line["seen"] for line in uninterrupted.lines] == sorted({line["seen"] for line in uninterrupted.lines})
    assert uninterrupted.lines[2]["taid_t"] > 0.4 + 0.6 * 2 / 6  # above the straight line
    assert [entry["step"] for entry in uninterrupted.result["evaluations"]] == [3, 6]
    assert (uninterrupted.path / "checkpoints" / "step-4" / "mine.txt").exists()


@pytest.mark.parametrize(
    ("trip", "saved", "lines"),
    [
        ("step 1 raise", [], 0),
        pytest.param("save 2 raise", [], 2, marks=pytest.mark.slow),
        ("save 4 raise", [2], 4),
        pytest.param("step 6 raise", [2, 4], 5, marks=pytest.mark.slow),
        pytest.param("save 7 raise", [2, 4, 6], 7, marks=pytest.mark.slow),
        ("end 0 raise", [2, 4, 6, 7], 7),
    ],
)
def test_an_interrupted_run_resumes(interruptible, uninterrupted, trip, saved, lines):
    name = trip.replace(" ", "-")
    broken = interruptible.run(name, trip)
    assert broken.steps_saved == saved
    found = broken.facts if (broken.path / "metrics.jsonl").exists() else []
    assert found == uninterrupted.facts[:lines]
    assert broken.result["status"] == "failed"
    assert "trip.py:Trip` failed in `on_" in broken.result["reason"]
    assert_same(interruptible.run(name, resume=True), uninterrupted)


@pytest.mark.slow
def test_a_run_may_be_interrupted_more_than_once(interruptible, uninterrupted):
    interruptible.run("thrice", "step 3 raise")
    interruptible.run("thrice", "save 6 raise", resume=True)
    interruptible.run("thrice", "step 5 raise", resume=True)
    assert_same(interruptible.run("thrice", resume=True), uninterrupted)


@pytest.mark.slow
def test_it_resumes_from_its_own_recipe(interruptible, uninterrupted):
    """The resolved recipe names files by absolute paths; the state of plugins is assigned to them nevertheless."""
    broken = interruptible.run("own", "step 6 raise")
    interruptible.switch.write_text("nowhere 0 raise")
    assert_same(interruptible.lab.run("own", broken.path / "recipe.yaml", resume=True), uninterrupted)


@pytest.mark.slow
def test_an_incomplete_line_and_partly_written_files_are_removed(interruptible, uninterrupted):
    broken = interruptible.run("torn", "step 6 raise")
    with (broken.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "tok')
    left = broken.path / "checkpoints" / ".step-6.abcdefgh.partial"
    left.mkdir()
    (left / "trainable.safetensors").write_bytes(b"half")
    assert_same(interruptible.run("torn", resume=True), uninterrupted)


@pytest.mark.slow
def test_a_run_of_a_live_process_is_locked_and_that_of_a_killed_one_is_not(interruptible, uninterrupted):
    broken = interruptible.run("locked", "step 6 raise")
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(broken.path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        before = {path: path.stat().st_mtime_ns for path in broken.path.rglob("*")}
        with pytest.raises(UsageError, match="another process is at work on ") as caught:
            interruptible.run("locked", resume=True)
        assert caught.value.exit_code == 2
        assert {path: path.stat().st_mtime_ns for path in broken.path.rglob("*")} == before
        other.kill()
    assert_same(interruptible.run("locked", resume=True), uninterrupted)


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("bit-flipped", "trainable.safetensors"),
        ("bit-flipped", "training.pt"),
        ("truncated", "plugins-0.pt"),
        ("map", "state.json"),
        ("deleted", "mine.txt"),
        ("nested", "contents.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(interruptible, uninterrupted, way, name, caplog):
    broken = interruptible.run(f"damaged-{name}", "step 5 raise")
    assert broken.steps_saved == [2, 4]
    WAYS[way](broken.path / "checkpoints" / "step-4" / name)
    caplog.clear()
    resumed = interruptible.run(f"damaged-{name}", resume=True)
    (message,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert message.startswith(f"damaged: step-4/{name} ")
    assert message.endswith("; the run goes on from step 2")
    assert_same(resumed, uninterrupted)


def test_a_run_whose_checkpoints_are_all_damaged_begins_again_only_where_they_are_removed(interruptible, uninterrupted):
    broken = interruptible.run("all-damaged", "step 5 raise")
    for step in (2, 4):
        (broken.path / "checkpoints" / f"step-{step}" / "contents.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in broken.path.rglob("*") if path.name != "log.txt"}
    with pytest.raises(UsageError, match=r"step-4/contents.json is missing; step-2/(.|\n)*begins again at step 0"):
        interruptible.run("all-damaged", resume=True)
    assert {path: path.stat().st_mtime_ns for path in broken.path.rglob("*") if path.name != "log.txt"} == before
    shutil.rmtree(broken.path / "checkpoints")
    assert_same(interruptible.run("all-damaged", resume=True), uninterrupted)


@pytest.mark.slow
def test_resume_without_a_checkpoint_starts_from_the_beginning(interruptible, uninterrupted):
    assert_same(interruptible.run("new", resume=True), uninterrupted)


def test_resume_of_a_complete_run_does_nothing(interruptible, uninterrupted):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in uninterrupted.path.rglob("*")}
    interruptible.run("uninterrupted", resume=True)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in uninterrupted.path.rglob("*")} == before


def test_a_run_that_was_killed_before_it_recorded_its_contents_repeats_its_end(interruptible, uninterrupted):
    """It has a result, but could not be pushed, nor its files verified."""
    path = interruptible.run("unrecorded").path
    (path / "contents.json").unlink()
    record(path, "recipe.yaml", "lock.json", "evaluation")  # what a run records before its end
    (path / ".contents.json.abcdefgh.partial").write_text("half")
    assert_same(interruptible.run("unrecorded", resume=True), uninterrupted)
    assert recorded(path).keys() == recorded(uninterrupted.path).keys()


def test_a_base_that_a_killed_process_wrote_is_written_again(lab):
    """Nothing is recorded of its files yet, so damage to them cannot be seen."""
    changes = {"student": {"prepare": {"prune_depth": {"layers": [0]}}}, "train": {"max_steps": 1}}
    path = lab.run("run", **changes).path
    whole = (path / "student" / "config.json").read_bytes()
    (path / "student" / "config.json").write_text("")
    for name in ("contents.json", "result.json"):
        (path / name).unlink()
    record(path, "recipe.yaml", "lock.json", "evaluation")
    lab.run("run", resume=True, **changes)
    assert (path / "student" / "config.json").read_bytes() == whole


def test_a_changed_recipe_is_refused_with_the_difference(lab):
    run = lab.run("run", train={"max_steps": 1})
    before = (run.path / "recipe.yaml").read_bytes()
    with pytest.raises(UsageError, match=r"train\.learning_rate: 0\.01 -> 0\.02\n(.|\n)*fix: ") as caught:
        lab.run("run", train={"max_steps": 1, "learning_rate": 0.02}, resume=True)
    assert "max_steps" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert (run.path / "recipe.yaml").read_bytes() == before


def test_other_data_under_the_same_name_is_refused(lab, tiny_chat):
    data = lab.folder / "chat.jsonl"
    data.write_bytes(tiny_chat.read_bytes())
    lab.plugin("trip", TRIP)
    switch = lab.folder / "switch.txt"
    switch.write_text("step 3 raise")
    probes = {"./trip.py:Trip": {"file": str(switch)}}
    recipe = lab.recipe(data={"source": str(data)}, probes=probes)
    with pytest.raises(PluginError, match="OSError: tripped"):
        lab.run("run", recipe)
    data.write_text(tiny_chat.read_text().replace("plus", "and"))
    with pytest.raises(UsageError, match=r"data\.fingerprint: .* -> "):
        lab.run("run", recipe, resume=True)


def test_a_recipe_in_another_order_is_the_same_recipe(lab):
    losses = {"cross_entropy": {"weight": 0.5}, "forward_kl": {"weight": 2.0}}
    lab.run("run", train={"max_steps": 1}, loss=losses)
    lab.run("run", train={"max_steps": 1}, loss=dict(reversed(losses.items())), resume=True)


def test_old_checkpoints_are_deleted(lab):
    run = lab.run("run", train={"max_steps": 5, "save_steps": 1, "save_total_limit": 2})
    assert run.steps_saved == [4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("trip", ["save 2 kill", "save 4 kill", "save 7 kill", "end 0 kill"])
def test_a_kill_during_a_save(interruptible, uninterrupted, trip):
    name = trip.replace(" ", "-")
    process = interruptible.process(name, trip)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert_same(interruptible.run(name, resume=True), uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_kills_at_random_moments(interruptible, uninterrupted, seed):
    """Three kills between the start of the process and its end; then the run continues to its end."""
    rng = random.Random(seed)
    name = f"killed-{seed}"
    for _ in range(3):
        process = interruptible.process(name, resume=True)
        wait_for_lines(interruptible.lab.folder / name / "metrics.jsonl", rng.randint(0, 7), process)
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
    process = interruptible.process(name, resume=True)
    process.join(120)
    assert process.exitcode == 0
    run = interruptible.lab.at(name)
    assert json.loads((run.path / "result.json").read_text())["status"] == "completed"
    assert_same(run, uninterrupted)


def wait_for_lines(file, count, process):
    """Wait until a run has written that many lines, or has ended."""
    while process.is_alive() and (len(file.read_text().splitlines()) if file.exists() else 0) < count:
        time.sleep(0.01)
