"""Faults of Liger 0.8.5, and faults that it has fixed, compared with neoplug."""

import pytest
import torch
from liger_kernel.chunked_loss import LigerFusedLinearCosineSimilarityLoss, LigerFusedLinearJSDLoss

from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.jsd import JensenShannon


def fused(loss, micro):
    """Return one of Liger's losses as a function of (hidden states, head)."""
    teacher = micro.teacher.flatten(0, 1)
    return lambda states, head: loss(states.flatten(0, 1), head, teacher, micro.teacher_head, micro.labels.flatten())


def divergence(beta=0.0, **options):
    return LigerFusedLinearJSDLoss(0.0, 1.0, beta, compiled=False, **options)


def test_a_bf16_softmax_gives_a_wrong_gradient_close_to_the_teacher(micro, ours, theirs, replaced):
    """p is close to q, in a vocabulary of thousands of tokens."""
    rng = torch.Generator().manual_seed(5)
    head = torch.randn(2048, 12, generator=rng) / 2
    near = micro.student + 0.05 * torch.randn(micro.student.shape, generator=rng)
    labels = torch.zeros_like(micro.labels)
    narrow = replaced(micro, near.bfloat16(), head.bfloat16(), micro.student.bfloat16(), head.bfloat16(), labels)
    states = narrow.student.double().requires_grad_()
    log_p, log_q = ((z @ narrow.student_head.double().t()).log_softmax(-1) for z in (narrow.teacher.double(), states))
    (log_p.exp() * (log_p - log_q)).sum(-1).mean().backward()

    def error(outcome):
        return ((outcome.by_states.double() - states.grad).norm() / states.grad.norm()).item()

    wrong, right = error(theirs(fused(divergence(), narrow), narrow)), error(ours(narrow, (1.0, ForwardKL())))
    print(f"relative error of the gradient: Liger {wrong:.3f}, neoplug {right:.4f}")
    assert right < 2**-8  # the rounding of the result to bfloat16
    assert wrong > 20 * right


def test_missing_rows_of_the_students_head_are_logits_of_zero(micro, ours, theirs, replaced):
    """Liger's student gets probability for rows of padding. Here they are in neither distribution."""
    padding = torch.full((300, micro.teacher_head.shape[1]), -0.2)
    wide = replaced(micro, teacher_head=torch.cat([micro.teacher_head, padding]))
    plain = theirs(fused(divergence(), micro), micro)
    assert (theirs(fused(divergence(), wide), wide).loss - plain.loss).abs() > 0.03
    ours(wide, (1.0, ForwardKL())).agrees_with(plain)


@pytest.mark.parametrize("head", [{"multiplier": 0.25}, {"cap": 3.0}], ids=["scaled", "capped"])
def test_scaling_and_soft_cap_of_logits_are_ignored(micro, ours, theirs, from_logits, head):
    def exact(student, teacher, labels):
        done = student * head.get("multiplier", 1.0)
        done = 3.0 * torch.tanh(done / 3.0) if "cap" in head else done
        log_p, log_q = (z[labels != -100].log_softmax(-1) for z in (teacher, done))
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean()

    right = from_logits(exact, micro)
    ours(micro, (1.0, ForwardKL()), student=head).agrees_with(right)
    assert (theirs(fused(divergence(), micro), micro).loss / right.loss - 1).abs() > 0.1


def test_a_frozen_head_gets_a_gradient_of_its_size_in_a_chunked_loss(micro):
    """It is not used. Liger's fused Triton loss computes none, nor does neoplug: tests/peers/test_frozen_head.py."""
    loss = fused(divergence(), micro)(micro.student.clone().requires_grad_(), micro.student_head)
    assert not micro.student_head.requires_grad
    assert [saved.shape for saved in loss.grad_fn.saved_tensors if saved is not None][1] == micro.student_head.shape


def test_the_gradient_vanishes_at_high_temperature(micro, ours, theirs):
    """No T^2: at T = 100 a ten-thousandth of the gradient remains, so the learning rate has another effect."""
    cold, hot = (theirs(fused(divergence(temperature=t), micro), micro).by_head.norm() for t in (1.0, 100.0))
    assert hot < 2e-4 * cold
    cold, hot = (ours(micro, (1.0, ForwardKL(t))).by_head.norm() for t in (1.0, 100.0))
    assert 0.3 * cold < hot < 3 * cold


def test_the_loss_is_discontinuous_at_beta_0(micro, theirs):
    """From 0.001 to 0 the loss grows a thousandfold; neoplug refuses 0 and 1 and names forward_kl and reverse_kl."""
    near, at = (theirs(fused(divergence(beta), micro), micro).loss for beta in (0.001, 0.0))
    assert at > 300 * near
    with pytest.raises(ValueError, match="forward_kl and reverse_kl"):
        JensenShannon(beta=0.0)


def test_masked_rows_no_longer_get_a_gradient_of_the_cosine_loss(micro, theirs):
    """Fixed: an older release gave them one."""
    loss = LigerFusedLinearCosineSimilarityLoss(0.0, 1.0, 1.0, compiled=False)
    found = theirs(fused(loss, micro), micro).by_states.norm(dim=-1)
    assert torch.count_nonzero(found[micro.labels == -100]) == 0
    assert (found[micro.labels != -100] > 0).all()
