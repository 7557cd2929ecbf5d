"""torchtune gives NaN, or crashes, when a chunk or a micro-batch holds no answer token."""

import math

import pytest
import torch

from neoplug.data.batch import collate
from neoplug.teachers.live import LiveTeacher
from neoplug.training.objective import objective
from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.forward_kl import ForwardKL

MUTE = '''
"""Take the answers of some micro-batches away."""
from dataclasses import dataclass
import torch
from neoplug import hookimpl

@dataclass(eq=False)
class Mute:
    calls: list[int]

    def __post_init__(self):
        self.call = -1

    @hookimpl
    def edit_batch(self, batch):
        self.call += 1
        if self.call in self.calls:
            batch.positions, batch.labels, batch.rows = (t[:0] for t in (batch.positions, batch.labels, batch.rows))
'''


@pytest.mark.parametrize("layout", ["varlen", "flat", "block", "padded"])
def test_a_micro_batch_without_an_answer_costs_zero(model, losses, document, layout):
    student, teacher = model("student"), model("teacher")
    student.layout = teacher.layout = layout
    student.module.requires_grad_(True)
    batch = collate([document(9, []), document(4, [], row=1)])
    named = losses(cross_entropy=(0.5, CrossEntropy()), forward_kl=(0.5, ForwardKL()))
    total, values = objective(
        named, student.hidden(batch), student.head, LiveTeacher(teacher).signal(batch), batch.labels, 0.0
    )
    total.backward()
    assert total == 0
    assert values.shape == (2, 0)
    assert all(torch.count_nonzero(p.grad) == 0 for p in student.module.parameters() if p.grad is not None)


def test_a_run_with_some_goes_on(run, tmp_path, tiny_teacher):
    """Step 1 has an empty micro-batch beside a full one, step 2 is empty as a whole."""
    (tmp_path / "mute.py").write_text(MUTE)
    lines, _ = run(
        teacher={"model": str(tiny_teacher)},
        adapter={"full": {}},  # a head that trains has a gradient of its own to spoil
        loss={"cross_entropy": {}, "forward_kl": {}},
        treatments={"./mute.py:Mute": {"calls": [0, 2, 3]}},
        train={"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    )
    full, none, after = lines
    assert full["answer_tokens"] > 0
    assert full["loss"] > 1
    assert (none["answer_tokens"], none["loss"], none["grad_norm"]) == (0, 0, 0)
    assert none["losses"] == {"cross_entropy": 0, "forward_kl": 0}
    assert math.isfinite(after["loss"])
    assert after["grad_norm"] > 0
