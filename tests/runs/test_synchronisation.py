"""neoplug does not wait for the device between two log lines; waits are counted on the CPU by call stack.

On a GPU each of these operations stalls the host until all queued work is done: reading a number from a tensor,
requesting the indices of non-zero elements, indexing by a mask. On a CPU the same operations can be counted.
The caller is the innermost frame outside torch. Treatments edit batches on the host before they move: not counted.
"""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import neoplug

WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "unique_dim",
    "_unique2",
    "bincount",
}
TORCH = str(Path(torch.__file__).parent)
CORE = str(Path(neoplug.__file__).parent)
ROOT = Path(neoplug.__file__).parent.parent
HOST_ONLY = (
    "micro_batches",
    "_varlen",
)  # these make and edit batches and find document bounds, on the CPU by contract
BETWEEN_LINES = ("flush", "save", "evaluate")

AUTOGRAD_ONLY = """
@dataclass(eq=False)
class Surprise:
    '''A loss without a closed form, so that autograd computes its gradient.'''

    @hookimpl
    def token_loss(self, student, labels):
        return -student.gather(-1, labels[:, None]).squeeze(-1)
"""
READER = """
@dataclass(eq=False)
class Reader:
    '''Reads a number from the device in every step, which the counter must count.'''

    @hookimpl
    def on_step_end(self, metrics):
        float(metrics["grad_norm"])
        metrics["sums"][metrics["sums"] > 0]
"""


class Waits(TorchDispatchMode):
    """Counts the operations of a training step that wait for the device, by caller."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in WAITING or (name in ("index", "index_put", "index_put_") and masked(args[1])):
            self.record(name)
        return function(*args, **(kwargs or {}))

    def record(self, name):
        frames = list(stack(sys._getframe(2)))
        functions = [frame.f_code.co_name for frame in frames if frame.f_code.co_filename.startswith(CORE)]
        if "distil" not in functions or any(inner in functions for inner in (*HOST_ONLY, *BETWEEN_LINES)):
            return
        caller = next(frame for frame in frames if not is_skipped(frame))
        self.found[f"{owner(caller.f_code.co_filename)}: {name} in {caller.f_code.co_name}"] += 1

    def of(self, *owners):
        return {caller: count for caller, count in self.found.items() if caller.split(":")[0] in owners}


def masked(indices):
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def stack(frame):
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_skipped(frame):
    return frame.f_code.co_filename.startswith((TORCH, __file__))


def owner(file):
    """Return `neoplug` for the core and its plugins, `file` for a plugin of the recipe, else the library's name."""
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1]
    return "neoplug" if Path(file).is_relative_to(ROOT) else "file"


@pytest.fixture
def waits(monkeypatch):
    """Return a counter that also counts `tolist`, `numpy` and `cpu`, which bypass the dispatcher."""
    counter = Waits()
    for name in ("tolist", "numpy", "cpu"):
        original = getattr(torch.Tensor, name)

        def recorded(tensor, *args, _name=name, _original=original, **kwargs):
            counter.record(_name)
            return _original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, recorded)
    return counter


RECIPES = {
    "lora and adamw": {},
    "packed, without log lines": {"data": {"packing": True}, "train": {"logging_steps": 100, "max_steps": 4}},
    "dora, loraplus and sgd": {
        "adapter": {"dora": {"r": 4}, "loraplus": {"lr_ratio": 4.0}},
        "optimizer": {"sgd": {"momentum": 0.9}},
        "train": {"max_steps": 4, "log_gradient_norms": True},
    },
    "full": {"adapter": {"full": {}}, "train": {"max_steps": 3, "gradient_checkpointing": True}},
}


QUICK = "dora, loraplus and sgd"


@pytest.mark.parametrize("name", [QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in RECIPES if n != QUICK)])
def test_neoplug_does_not_wait_between_log_lines(lab, waits, name):
    lab.plugin("surprise", AUTOGRAD_ONLY)
    every = {"cross_entropy": {}, "forward_kl": {"temperature": 2.0}, "reverse_kl": {}, "jsd": {}, "taid": {}}
    sections = {
        "loss": every | {"./surprise.py:Surprise": {}},
        "treatments": {"label_noise": {"probability": 0.1}},
        "token_weights": {"position": {}, "student_confidence": {}, "teacher_entropy": {}},
        "train": {"max_steps": 4},
    } | RECIPES[name]
    with waits:
        run = lab.run("run", **sections)
    assert len(run.lines) >= 3
    assert waits.of("neoplug", "file") == {}
    for caller, count in sorted(waits.found.items()):  # of other libraries; shown by pytest -rP
        print(f"{name}: {caller}:  {count / len(run.lines):g} a step")


@pytest.mark.slow
def test_the_counter_finds_operations_that_wait(lab, waits):
    lab.plugin("reader", READER)
    with waits:
        lab.run("run", probes={"./reader.py:Reader": {}}, train={"max_steps": 2})
    assert waits.of("file") == {
        "file: _local_scalar_dense in on_step_end": 2,
        "file: index in on_step_end": 2,
    }
