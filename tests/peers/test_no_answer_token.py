"""torchtune returns NaN, or crashes, when a chunk or a micro-batch has no answer token."""

import math

import pytest
import torch

from neoplug.data.batch import collate
from neoplug.teachers.live import LiveTeacher
from neoplug.training.objective import objective
from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.forward_kl import ForwardKL

DROP = '''
"""Remove the answer tokens of some rows."""
from dataclasses import dataclass
import torch
from neoplug import hookimpl

@dataclass(eq=False)
class Drop:
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
def test_a_micro_batch_without_answer_tokens_has_loss_zero(model, losses, document, layout):
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


def test_a_run_with_steps_without_answer_tokens_continues(run, tmp_path, tiny_teacher):
    """One of the two micro-batches of step 1 has no answer tokens, and both of step 2; each has two rows."""
    (tmp_path / "drop.py").write_text(DROP)
    lines, _ = run(
        teacher={"model": str(tiny_teacher)},
        adapter={"full": {}},  # the trainable head has a gradient, too
        loss={"cross_entropy": {}, "forward_kl": {}},
        treatments={"./drop.py:Drop": {"calls": [0, 1, 4, 5, 6, 7]}},
        train={"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    )
    full, none, after = lines
    assert full["answer_tokens"] > 0
    assert full["loss"] > 1
    assert (none["answer_tokens"], none["loss"], none["grad_norm"]) == (0, 0, 0)
    assert none["losses"] == {"cross_entropy": 0, "forward_kl": 0}
    assert math.isfinite(after["loss"])
    assert after["grad_norm"] > 0
