"""Several processes: the same steps as one process with proportionally more micro-batches, and output from one rank."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from neoplug.distributed.world import World
from neoplug.errors import RunError
from tests.commands import Command, start_ranks, variables_of_ranks

pytestmark = pytest.mark.slow
PARTS = """
@dataclass(eq=False)
class NaNAt:
    '''Not a number where the label is the token that Mark writes.'''

    @hookimpl
    def token_loss(self, student, labels):
        return torch.where(labels == 7, float("nan"), -student.gather(-1, labels[:, None]).squeeze(-1))


@dataclass(eq=False)
class Mark:
    rows: list[int]

    @hookimpl
    def edit_batch(self, batch):
        hit = torch.tensor([int(row) in self.rows for row in batch.rows], dtype=torch.bool)
        batch.labels = torch.where(hit, 7, batch.labels)


@dataclass(eq=False)
class Counts:
    '''Records the rows of its rank; writes the state that it saves and the state that it loads to files.'''

    folder: str
    rows: list = field(default_factory=list)

    @hookimpl
    def edit_batch(self, batch):
        self.rows.append(sorted({int(row) for row in batch.rows}))

    def state_dict(self):
        self.write("kept", self.rows)
        return {"rows": self.rows}

    def load_state_dict(self, state):
        self.write("found", state["rows"])

    def write(self, what, rows):
        Path(self.folder, f"{what}-{os.environ['RANK']}").write_text(str(rows))


@dataclass(eq=False)
class Kill:
    '''Kills the process of a rank after a step.'''

    rank: int
    step: int

    @hookimpl
    def on_step_end(self, step):
        if int(os.environ["RANK"]) == self.rank and step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(eq=False)
class KillBefore:
    '''Kills rank 1 before the first step, while the others wait for a signal; once.'''

    flag: str

    @hookimpl
    def on_step_end(self):
        pass

    def state_dict(self):
        if Path(self.flag).exists():
            if os.environ["RANK"] != "1":
                signal.pause()
            Path(self.flag).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def load_state_dict(self, state):
        pass


@dataclass(eq=False)
class KillEarly:
    '''Kills the process of a rank while the student is prepared.'''

    rank: int

    @hookimpl
    def prepare_student(self):
        if int(os.environ["RANK"]) == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(eq=False)
class StopOn:
    '''Ends training on one rank, after a step.'''

    rank: int
    step: int

    @hookimpl
    def should_stop(self, step):
        return "the rank has had enough" if (int(os.environ["RANK"]), step) == (self.rank, self.step) else None


@dataclass(eq=False)
class Ridge:
    @hookimpl
    def penalty(self, model):
        return 0.1 * sum(p.square().sum() for p in model.parameters() if p.requires_grad)
"""


def launch(lab, recipe, output, *options, ranks=2):
    """Run the command under torchrun, whose ranks import everything anew, and return the completed process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "neoplug", "run", str(recipe), "--output", str(lab.folder / output), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)


def run_words(lab, recipe, output, *options):
    """Return the words of the command that runs a recipe."""
    return ("run", recipe, "--output", lab.folder / output, *options)


def run_on_ranks(lab, recipe, output, *options, ranks=2):
    """Run a recipe on several ranks without a launcher; return what they printed on stdout."""
    ended = [rank.end() for rank in start_ranks(ranks, *run_words(lab, recipe, output, *options))]
    assert not any(rank.exitcode for rank in ended), "\n".join(rank.err for rank in ended)
    return "".join(rank.out for rank in ended)


@pytest.mark.parametrize(("ranks", "size"), [(2, 1), (3, 2)])
def test_ranks_share_the_held_out_text_and_have_the_same_sums(lab, ranks, size):
    """3 documents: ranks have different numbers of them, and with batches of 2 one rank has none."""
    sections = {"train": {"max_steps": 1}, "data": {"held_out": 3}, "evaluate": {"per_device_eval_batch_size": size}}
    recipe = lab.recipe(**sections)
    run_on_ranks(lab, recipe, "many", ranks=ranks)
    one, many = lab.run("one", recipe), lab.at("many")
    for name in ("before", "teacher"):
        ours, theirs = ((run.path / "evaluation" / f"{name}.parquet").read_bytes() for run in (many, one))
        assert ours == theirs
        assert many.result[name] == one.result[name]


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_two_ranks_train_as_one(lab, drop, adapter):
    """Rows that leave a rank idle at the end of an epoch, rows without answers, clipping, a penalty."""
    lab.plugin("parts", PARTS)
    sections = {
        "adapter": {adapter: {} if adapter == "full" else {"r": 4}},
        "treatments": {drop: {"rows": [1, 5, 6, 9]}, "./parts.py:Ridge": {}, "label_noise": {"probability": 0.3}},
        "optimizer": {"sgd": {"momentum": 0.5}},
        "loss": {"cross_entropy": {"weight": 0.5}, "forward_kl": {"weight": 2.0, "calibrate": "reverse_kl"}},
        "token_weights": {"student_confidence": {}},
        "data": {"max_length": 160, "packing": False, "held_out": 3},
    }
    train = {"max_steps": 7, "max_grad_norm": 0.5, "save_steps": 4, "log_gradient_norms": True}  # 21 rows: 8, 8, 5
    two = lab.recipe("two", train=train | {"gradient_accumulation_steps": 2}, **sections)
    printed = run_on_ranks(lab, two, "two")
    one = lab.run("one", train=train | {"gradient_accumulation_steps": 4}, **sections)
    run = lab.at("two")
    assert len(run.lines) == 7
    for ours, theirs in zip(run.lines, one.lines, strict=True):
        assert (ours["tokens"], ours["answer_tokens"]) == pytest.approx(
            (theirs["tokens"], theirs["answer_tokens"]), abs=0
        )
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
        assert ours["weights"] == pytest.approx(theirs["weights"], rel=1e-5)
        assert ours.get("gradient_norms", {}) == pytest.approx(theirs.get("gradient_norms", {}), rel=1e-4)
        assert ours["penalty"] == pytest.approx(theirs["penalty"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    where = "adapter/adapter_model.safetensors" if adapter == "lora" else "model/model.safetensors"
    ours, theirs = load_file(run.path / where), load_file(one.path / where)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)
    for key in ("before", "after"):
        ours, theirs = run.result[key], one.result[key]
        assert ours.pop("probes") == theirs.pop("probes") == {}
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert printed.count("written to ") == 1
    assert printed.count("forward KL") == 1


def test_two_ranks_teach_themselves_as_one(lab):
    """A rank is idle in the last step."""
    lab.base["teacher"] = {"self": "ema", "decay": 0.6}
    sections = {
        "adapter": {"lora_fa": {"r": 4}},
        "optimizer": {"sgd": {"momentum": 0.5}},
        "loss": {"cross_entropy": {"weight": 0.5}, "forward_kl": {"weight": 2.0}},
        "data": {"max_length": 160, "packing": False, "held_out": 3},
    }
    train = {"max_steps": 6, "save_steps": 2, "learning_rate": 0.1, "log_gradient_norms": True}
    two = lab.recipe("two", train=train | {"gradient_accumulation_steps": 2}, **sections)
    done = launch(lab, two, "two")
    assert done.returncode == 0, done.stderr
    one = lab.run("one", train=train | {"gradient_accumulation_steps": 4}, **sections)
    run = lab.at("two")
    for ours, theirs in zip(run.lines, one.lines, strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4, abs=1e-7)
        assert ours.get("gradient_norms", {}) == pytest.approx(theirs.get("gradient_norms", {}), rel=1e-3, abs=1e-6)
    for key in ("teacher", "after"):
        ours, theirs = ({**each.result[key], "probes": 0} for each in (run, one))
        assert ours == pytest.approx(theirs, rel=1e-4)
    ours, theirs = (load_file(each.path / "checkpoints/step-6/average.safetensors") for each in (run, one))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_mistakes_of_a_recipe_are_printed_once(lab):
    wrong = lab.folder / "wrong.yaml"
    wrong.write_text("seed: few\n")
    done = launch(lab, wrong, "wrong", ranks=3)
    assert done.stderr.count("`seed` is") == 1
    assert not (lab.folder / "wrong").exists()


def test_a_fault_on_another_rank_is_named(lab):
    lab.plugin("parts", PARTS)
    recipe = lab.recipe(
        loss={"./parts.py:NaNAt": {}, "cross_entropy": {}},
        treatments={"./parts.py:Mark": {"rows": [4, 9, 15]}},
        train={"max_steps": 7, "gradient_accumulation_steps": 1},
    )
    ranks = [rank.end() for rank in start_ranks(2, *run_words(lab, recipe, "run"))]
    assert all(rank.exitcode != 0 for rank in ranks)
    result = lab.at("run").result
    assert result["status"] == "failed"
    rows = re.search(r"rows at fault \(numbered from 0 in the source\): ([\d, ]+)", result["reason"])
    assert {int(row) for row in rows.group(1).split(",")} <= {4, 9, 15}


def test_each_rank_loads_its_own_state(lab):
    lab.plugin("parts", PARTS)
    counts = {"./parts.py:Counts": {"folder": str(lab.folder)}}
    recipe = lab.recipe(treatments=counts, train={"max_steps": 2, "save_steps": 1})
    run_on_ranks(lab, recipe, "run")
    (lab.folder / "run" / "result.json").unlink()  # as after a kill before the end
    run_on_ranks(lab, recipe, "run", "--resume")
    kept, found = ([(lab.folder / f"{what}-{rank}").read_text() for rank in (0, 1)] for what in ("kept", "found"))
    assert kept == found
    assert kept[0] != kept[1]


def test_a_plugin_that_ends_training_on_one_rank_ends_all_at_the_same_step(lab):
    lab.plugin("parts", PARTS)
    train = {"max_steps": 6, "logging_steps": 1, "save_steps": 4}
    recipe = lab.recipe(stops={"./parts.py:StopOn": {"rank": 1, "step": 3}}, train=train)
    run_on_ranks(lab, recipe, "run")
    run = lab.at("run")
    assert (run.result["status"], run.result["steps"], run.steps_saved) == ("completed", 3, [3])
    assert run.result["stop_reason"] == "./parts.py:StopOn: the rank has had enough"


def test_a_process_group_of_another_size_is_refused(lab, monkeypatch):
    World("cpu")  # accelerate keeps the process group of its first initialisation
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="set WORLD_SIZE to 2"):
        lab.run("run", train={"max_steps": 1})
    assert not (lab.folder / "run").exists()


def test_half_of_a_launchers_variables_is_refused_with_the_command(lab):
    done = Command(*run_words(lab, lab.recipe(), "run"), WORLD_SIZE="2").start().end()
    assert done.exitcode == 1
    assert "Traceback" not in done.err
    assert "torchrun" in done.err


def start_unreaped(lab, recipe, output, number):
    """Start the ranks of a run as children of this process, so that the others can read how a dead one ended."""
    command = [sys.executable, "-m", "neoplug", *map(str, run_words(lab, recipe, output))]
    return [
        subprocess.Popen(command, env={**os.environ, **variables}, stderr=subprocess.PIPE)
        for variables in variables_of_ranks(number)
    ]


@pytest.mark.parametrize(("ranks", "killed"), [(2, 1), (3, 0)])
def test_the_result_names_a_killed_rank_and_the_steps(lab, ranks, killed):
    lab.plugin("parts", PARTS)
    kill = {"./parts.py:Kill": {"rank": killed, "step": 5}}
    recipe = lab.recipe(treatments=kill, train={"save_steps": 2, "logging_steps": 3})
    processes = start_unreaped(lab, recipe, "run", ranks)
    living = [process for rank, process in enumerate(processes) if rank != killed]
    errors = [process.communicate(timeout=240)[1].decode() for process in [*living, processes[killed]]]
    assert [process.returncode for process in [*living, processes[killed]]] == [1] * len(living) + [-signal.SIGKILL]
    assert not any("Traceback" in error for error in errors), errors
    result = lab.at("run").result
    assert result["status"] == "failed"
    what, why, fix = result["reason"].split("\n")
    name = f"rank {killed} (process {processes[killed].pid} on {socket.gethostname()})"
    assert what == f"{name} was killed by SIGKILL; step 5 was the last that finished, step 4 the last that was saved"
    assert "memory" in why
    assert fix == "fix: start the run again with --resume, which goes on after step 4"
    assert set(result) >= {"before", "teacher"}


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_killed_before_there_is_a_run_is_named(lab, killed):
    lab.plugin("parts", PARTS)
    recipe = lab.recipe(student={"prepare": {"./parts.py:KillEarly": {"rank": killed}}}, train={"max_steps": 1})
    processes = start_unreaped(lab, recipe, "run", 2)
    errors = [process.communicate(timeout=240)[1].decode() for process in (processes[1 - killed], processes[killed])]
    assert [process.returncode for process in (processes[1 - killed], processes[killed])] == [1, -signal.SIGKILL]
    assert "Traceback" not in errors[0]
    name = f"rank {killed} (process {processes[killed].pid} on {socket.gethostname()})"
    assert f"{name} was killed by SIGKILL, before the first step\nwhy: " in errors[0]
    assert errors[0].endswith("fix: start the run again\n")
    assert not (lab.folder / "run").exists()


def test_a_rank_that_is_killed_before_training_is_named_although_torchrun_stops_the_others(lab):
    lab.plugin("parts", PARTS)
    flag = lab.folder / "flag"
    flag.touch()
    recipe = lab.recipe(treatments={"./parts.py:KillBefore": {"flag": str(flag)}}, train={"max_steps": 1})
    done = launch(lab, recipe, "run")
    assert not flag.exists(), done.stderr
    result = lab.at("run").result
    assert result["status"] == "failed"
    name = rf"rank 1 \(process \d+ on {re.escape(socket.gethostname())}\)"
    ends = "(is gone|was killed by SIGKILL); no step was finished, none was saved\n"
    assert re.match(f"{name} {ends}", result["reason"])
    done = launch(lab, recipe, "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert lab.at("run").result["status"] == "completed"
