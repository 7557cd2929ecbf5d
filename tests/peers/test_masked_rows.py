"""Liger's cosine loss gives masked rows a gradient. Here their gradient is exactly 0."""

import pytest
import torch

from neoplug.data.batch import collate
from neoplug.teachers.live import LiveTeacher
from neoplug.training.objective import objective
from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.forward_kl import ForwardKL


@pytest.mark.parametrize("layout", ["varlen", "flat", "block", "padded"])
def test_masked_rows_have_a_gradient_of_exactly_zero(model, losses, document, layout):
    """States: all that predict no answer token. Inputs: padding, rows without an answer, all after an answer."""
    student, teacher = model("student"), model("teacher")
    student.layout = teacher.layout = layout
    answered, unanswered, short = document(12, range(5, 9)), document(7, [], row=1), document(4, [2], row=2)
    batch = collate([answered, unanswered, short])
    kept = {}

    def keep(name):
        def hook(_module, _inputs, output):
            kept[name] = output.requires_grad_() if output.is_leaf else output
            kept[name].retain_grad()

        return hook

    decoder = student.module.model
    decoder.embed_tokens.register_forward_hook(keep("inputs"))
    decoder.norm.register_forward_hook(keep("states"))
    named = losses(cross_entropy=(0.5, CrossEntropy()), forward_kl=(0.5, ForwardKL()))
    total, _ = objective(
        named, student.hidden(batch), student.head, LiveTeacher(teacher).signal(batch), batch.labels, 0.0
    )
    total.backward()
    states, inputs = (kept[name].grad.flatten(0, 1) for name in ("states", "inputs"))
    positions = batch.layout(layout)[1]

    masked = torch.ones(len(states), dtype=torch.bool).index_fill(0, positions, False)
    assert masked.sum() == len(states) - 5
    assert torch.count_nonzero(states[masked]) == 0
    assert (states[positions].norm(dim=-1) > 1e-3).all()

    starts = [0, 12, 24] if layout == "padded" else [0, 12, 19]
    # Inputs up to the last position that predicts an answer token.
    reached = [*range(starts[0], starts[0] + 8), *range(starts[2], starts[2] + 2)]
    unreached = torch.ones(len(inputs), dtype=torch.bool).index_fill(0, torch.tensor(reached), False)
    assert torch.count_nonzero(inputs[unreached]) == 0
    assert (inputs[reached].norm(dim=-1) > 1e-5).all()
