"""Runs whose models are sharded over ranks, against the same runs in one process.

All runs of a number of ranks are in one group of processes, one after the other.
"""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from neoplug.registry.nested import numbers
from tests.commands import start_ranks, start_runs_on_ranks
from tests.runs.conftest import DROP, Lab, cut

pytestmark = pytest.mark.slow

RIDGE = """
@dataclass(eq=False)
class Ridge:
    @hookimpl
    def penalty(self, model):
        return 0.1 * sum(p.square().sum() for p in model.parameters() if p.requires_grad)
"""
WHOLE = """
import gc

from torch.distributed.tensor import DTensor


@dataclass(eq=False)
class Whole:
    '''Counts the weights of MLPs that are whole on this rank after a step.'''

    @hookimpl
    def on_step_end(self):
        weights = [each for each in gc.get_objects() if isinstance(each, torch.nn.Parameter)]
        whole = [w for w in weights if not isinstance(w, DTensor) and w.untyped_storage().nbytes()]
        shapes = ((96, 48), (128, 64), (96 * 48 // 2, 1), (128 * 64 // 2, 1))  # the last two: packed to 4 bits
        stored = {w.untyped_storage().data_ptr() for w in whole if tuple(w.shape) in shapes}  # without aliases
        return {"whole_weights": len(stored)}
"""
PART = """
@dataclass(eq=False)
class Part:
    '''Trains a part of the base's weights, inside and outside its layers, so that `base` and `full` both fit.'''

    @hookimpl
    def add_adapter(self, model):
        for name, weight in model.named_parameters():
            weight.requires_grad_(name.endswith(("q_proj.weight", "norm.weight")))
        return model
"""
TREATMENTS = {"./drop.py:Drop": {"rows": [1, 5, 6, 9]}, "./ridge.py:Ridge": {}, "./whole.py:Whole": {}}
CALIBRATED = {"cross_entropy": {"weight": 0.5}, "forward_kl": {"weight": 2.0, "calibrate": "reverse_kl"}}
BEST = {"eval_steps": 1, "metric_for_best_model": "cross_entropy", "load_best_model_at_end": True}
SGD = {"sgd": {"momentum": 0.5}}
# 21 rows: steps of 8, 8 and 5, in the last of which a rank of two has fewer, and of four none.
TRAIN = {"max_steps": 3, "max_grad_norm": 0.5, "save_steps": 1, "logging_steps": 1, "log_gradient_norms": True}
FOUR_BITS = {"load": {"nf4": {"compute_dtype": "float32"}}}
CASES = {
    "lora": ("base", {"adapter": {"lora": {"r": 4}}, "loss": CALIBRATED, "treatments": TREATMENTS, "optimizer": SGD}),
    "dora": ("base", {"adapter": {"dora": {"r": 4}}, "optimizer": SGD, "train": {"gradient_checkpointing": True}}),
    "adapted head": ("base", {"adapter": {"lora": {"r": 4, "target_modules": ["q_proj", "lm_head"]}}, "untied": True}),
    "full": (
        "full",
        {"adapter": {"full": {}}, "loss": CALIBRATED, "treatments": TREATMENTS, "evaluate": BEST,
         "probes": {"calibration": {}, "cka": {"layers": {1: 2}}},
         "train": {"gradient_checkpointing": True, "learning_rate": 0.002}},
    ),
    "nf4": (
        "base",
        {"adapter": {"dora": {"r": 4}}, "student": FOUR_BITS, "teacher": FOUR_BITS, "treatments": TREATMENTS,
         "loss": CALIBRATED, "train": {"gradient_checkpointing": True}},
    ),
    "part": ("base", {"adapter": {"./part.py:Part": {}}, "treatments": {"./whole.py:Whole": {}}}),
    "full untied": ("full", {"adapter": {"full": {}}, "untied": True, "optimizer": SGD, "evaluate": BEST}),
}  # fmt: skip
ON_FOUR = ("lora", "full")
# A run, and how it goes on: from which step, on how many ranks, with which `train.shard`.
RESUMED = {
    "lora-1": [(1, 2, "base"), (2, 1, "none")],
    "lora-4": [(1, 2, "none")],
    "nf4-2": [(1, 1, "none"), (2, 2, "base")],
    "part-2": [(1, 2, "full"), (2, 2, "base")],
    "full-1": [(1, 2, "full"), (2, 1, "base")],
    "full-2": [(1, 2, "none"), (2, 2, "full")],
    "full-4": [(1, 1, "none")],
}


class Sharded(Lab):
    """A lab for the cases: each on two or four ranks sharded, or in one process."""

    def case(self, name, ranks, **train):
        shard, keys = CASES[name]
        sections = {"optimizer": SGD} | {key: value for key, value in keys.items() if key not in ("train", "untied")}
        if name == "full":
            sections["optimizer"] = {"adamw": {"weight_decay": 0.1}}
        if keys.get("untied"):
            sections |= {"student": {"model": self.base["teacher"]["model"]}}
            sections |= {"teacher": {"model": self.base["student"]["model"]}}
        own = {"gradient_accumulation_steps": 4 // ranks, "shard": shard if ranks > 1 else "none"}
        return self.recipe(f"{name}-{ranks}", train=TRAIN | keys.get("train", {}) | own | train, **sections)

    def path(self, name, ranks):
        return self.folder / f"{name}-{ranks}"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, tiny_student, tiny_teacher, tiny_chat):
    """Return a lab in which the cases have run on two ranks, and some on four."""
    lab = Sharded(tmp_path_factory.mktemp("sharded"), tiny_student, tiny_teacher, tiny_chat)
    lab.plugin("drop", DROP)
    lab.plugin("ridge", RIDGE)
    lab.plugin("whole", WHOLE)
    lab.plugin("part", PART)
    runs = [(lab.case(name, 2), lab.path(name, 2), False) for name in CASES]
    four = [(lab.case(name, 4), lab.path(name, 4), False) for name in ON_FOUR]
    lab.errors = [rank.end(600).err for rank in start_runs_on_ranks(2, runs)]
    lab.errors += [rank.end(600).err for rank in start_runs_on_ranks(4, four)]
    return lab


@pytest.fixture(scope="module")
def in_one_process(sharded):
    """Return a function: name of a case -> its run in one process."""
    done = {}

    def run(name):
        if name not in done:
            done[name] = sharded.run(f"{name}-1", sharded.case(name, 1))
        return done[name]

    return run


def compare(run, one):
    """Compare the metrics, evaluations, weights and checkpoints of two runs."""
    assert len(run.lines) == len(one.lines) == 3
    for ours, theirs in zip(run.lines, one.lines, strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
        assert ours.get("weights", {}) == pytest.approx(theirs.get("weights", {}), rel=1e-5)
        assert ours["gradient_norms"] == pytest.approx(theirs["gradient_norms"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours.get("penalty", 0.0) == pytest.approx(theirs.get("penalty", 0.0), rel=1e-5)
    for key in ("before", "after", "teacher"):
        ours, theirs = (numbers(each.result[key]) for each in (run, one))
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert run.result.get("best", {}).get("step") == one.result.get("best", {}).get("step")
    for file in (
        "adapter/adapter_model.safetensors",
        "model/model.safetensors",
        "checkpoints/step-2/trainable.safetensors",
    ):
        assert (run.path / file).exists() == (one.path / file).exists()
        if (one.path / file).exists():
            close(load_file(run.path / file), load_file(one.path / file))
    ours, theirs = (torch.load(each.path / "checkpoints/step-2/training.pt") for each in (run, one))
    groups = [[{**group, "fused": 0} for group in each["optimizer"]["param_groups"]] for each in (ours, theirs)]
    assert groups[0] == groups[1]
    for number, state in theirs["optimizer"]["state"].items():
        close(ours["optimizer"]["state"][number], state)


def close(ours, theirs):
    """Compare two maps of tensors."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if tensor is not None:
            assert type(ours[name]) is type(tensor)
            torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one(sharded, in_one_process, name):
    assert sharded.path(name, 2).exists(), sharded.errors
    compare(sharded.at(f"{name}-2"), in_one_process(name))


@pytest.mark.parametrize(("name", "weights"), [("lora", 12), ("full", 12), ("nf4", 18)])
def test_no_rank_holds_a_layer_whole_after_a_step(sharded, in_one_process, name, weights):
    """Gate and up of 2 + 4 layers; packed, down has as many numbers."""
    assert [line["whole_weights"] for line in in_one_process(name).lines] == [weights] * 3
    assert [line["whole_weights"] for line in sharded.at(f"{name}-2").lines] == [0] * 3


@pytest.mark.parametrize("name", ON_FOUR)
def test_four_ranks_train_as_one(sharded, in_one_process, name):
    compare(sharded.at(f"{name}-4"), in_one_process(name))


@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_resumes_on_other_ranks_and_under_another_value(sharded, in_one_process, name):
    """By the command line, as if the run had been killed after a step."""
    case, _, ranks = name.partition("-")
    whole, folder = in_one_process(case), sharded.path(case, f"{ranks}-resumed")
    shutil.copytree(sharded.path(case, ranks), folder)
    for step, ranks, shard in RESUMED[name]:
        cut(sharded.at(folder), step)
        train = (f"train.shard={shard}", f"train.gradient_accumulation_steps={4 // ranks}")
        words = ("run", sharded.folder / f"{name}.yaml", "--output", folder, "--resume", *train)
        ended = [rank.end() for rank in start_ranks(ranks, *words)]
        assert not any(rank.exitcode for rank in ended), "\n".join(rank.err for rank in ended)
        compare(sharded.at(folder), whole)
        is_sharded = ranks > 1 and shard != "none"
        assert {line["whole_weights"] for line in sharded.at(folder).lines[step:]} == {
            0 if is_sharded else whole.lines[0]["whole_weights"]
        }


REFUSED = {
    "student.load": ({"student": {"load": {"int8": {}}}}, "base", "the student is quantised"),
    "teacher.load": ({"teacher": {"load": {"int8": {}}}}, "base", "the teacher is quantised"),
    "device": ({"student": {"device": "cuda:0"}}, "none", "there are 2 processes"),
    "nothing frozen": ({"adapter": {"full": {}}}, "base", "nothing of the student would be sharded"),
    "adapter": ({}, "full", "the weights of `lora` cannot be sharded"),
    "average": ({"adapter": {"full": {}}}, "full", "the teacher cannot be sharded"),
    "muon": ({"adapter": {"full": {}}, "optimizer": {"muon": {}}}, "full", "`muon` cannot train with `shard: full`"),
    "adafactor": (
        {"adapter": {"full": {}}, "optimizer": {"adafactor": {}}}, "full", "`adafactor` cannot train with `shard: full`"
    ),
}  # fmt: skip


def test_what_cannot_be_sharded_is_refused_before_a_model_is_loaded(lab):
    runs, teacher = [], lab.base["teacher"]
    for name, (sections, shard, _) in REFUSED.items():
        lab.base["teacher"] = {"self": "ema"} if name == "average" else teacher
        runs.append((lab.recipe(name, train={"shard": shard}, **sections), lab.folder / name, False))
    for rank in start_runs_on_ranks(2, runs):
        printed = rank.end(300).err
        for name, (_, _, what) in REFUSED.items():
            assert what in printed, (name, printed)
        assert "loading the models" not in printed


def test_one_process_shards_nothing_and_says_so(lab, caplog):
    lab.run("run", train={"max_steps": 1, "shard": "base"})
    assert "train.shard: base shards nothing: there is one process" in caplog.text
