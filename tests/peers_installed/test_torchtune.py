"""torchtune 0.6.1, `torchtune.modules.loss`: means over the labels that are not -100, at temperature 1.

Its "forward KL" is the cross-entropy of p and q: it omits the teacher's entropy. The gradient is the same.
"""

import pytest
from torchtune.modules.loss import (
    ForwardKLLoss,
    ForwardKLWithChunkedOutputLoss,
    ReverseKLLoss,
    ReverseKLWithChunkedOutputLoss,
    SymmetricKLLoss,
    SymmetricKLWithChunkedOutputLoss,
)

from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.jeffreys import Jeffreys
from neoplug_losses.reverse_kl import ReverseKL


@pytest.fixture
def whole(from_logits):
    """Return a function that differentiates one of torchtune's losses of all logits at once."""

    def differentiate(loss, micro):
        return from_logits(
            lambda student, teacher, labels: loss(student.flatten(0, 1), teacher.flatten(0, 1), labels.flatten()), micro
        )

    return differentiate


@pytest.fixture
def chunked(from_logits):
    """Return a function that differentiates one of torchtune's losses of logits in four chunks of each row."""

    def differentiate(loss, micro):
        return from_logits(
            lambda student, teacher, labels: loss(student.chunk(4, 1), teacher.chunk(4, 1), labels), micro
        )

    return differentiate


@pytest.fixture(params=["whole", "chunked"])
def form(request):
    return request.getfixturevalue(request.param), request.param == "chunked"


def test_forward_kl_without_the_teachers_entropy_is_torchtunes(micro, ours, form):
    differentiate, chunks = form
    theirs = differentiate(ForwardKLWithChunkedOutputLoss(4) if chunks else ForwardKLLoss(), micro)
    ours(micro, (1.0, ForwardKL(omit_teacher_entropy=True))).agrees_with(theirs)
    log_p = micro.teacher_logits[micro.labels != -100].double().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1).mean().float()
    found = ours(micro, (1.0, ForwardKL()))
    type(found)(found.loss + entropy, found.by_states, found.by_head).agrees_with(theirs)
    assert entropy > 0.1


def test_reverse_kl_is_torchtunes(micro, ours, form):
    differentiate, chunks = form
    loss = ReverseKLWithChunkedOutputLoss(4) if chunks else ReverseKLLoss()
    ours(micro, (1.0, ReverseKL())).agrees_with(differentiate(loss, micro))


@pytest.mark.parametrize("ratio", [0.5, 0.2])
def test_symmetric_kl_is_torchtunes(micro, ours, form, ratio):
    """`sym_kd_ratio` weights the forward KL without the teacher's entropy: two losses here, or Jeffreys' gradient."""
    differentiate, chunks = form
    theirs = differentiate(SymmetricKLWithChunkedOutputLoss(4, ratio) if chunks else SymmetricKLLoss(ratio), micro)
    ours(micro, (ratio, ForwardKL(omit_teacher_entropy=True)), (1 - ratio, ReverseKL())).agrees_with(theirs)
    both = ours(micro, (1.0, Jeffreys(forward_share=ratio)))
    type(both)(theirs.loss, both.by_states, both.by_head).agrees_with(theirs)
