"""Liger 0.8.5: `chunked_loss`, which is plain torch, and its Triton kernels, in Triton's interpreter.

Its beta weights the teacher, as here; 0 is the forward and 1 the reverse KL. No loss is multiplied by T^2. Means are
over the labels that are not -100.
"""

import pytest
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
from liger_kernel.transformers import LigerFusedLinearJSD, LigerJSD, LigerKLDIVLoss, LigerTVDLoss

from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.jsd import JensenShannon
from neoplug_losses.reverse_kl import ReverseKL
from neoplug_losses.total_variation import TotalVariation


def divergence(beta, temperature=1.0):
    if beta in (0.0, 1.0):
        return (ReverseKL if beta else ForwardKL)(temperature)
    return JensenShannon(temperature, beta)


@pytest.mark.parametrize("chunk_size", [5, 1024])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_chunked_jsd_with_cross_entropy(micro, ours, theirs, beta, temperature, chunk_size):
    loss = LigerFusedLinearJSDLoss(0.3, 0.7, beta, temperature=temperature, compiled=False, chunk_size=chunk_size)

    def fused(states, head):
        flat, teacher = states.flatten(0, 1), micro.teacher.flatten(0, 1)
        return loss(flat, head, teacher, micro.teacher_head, micro.labels.flatten())

    found = ours(micro, (0.3, CrossEntropy()), (0.7 / temperature**2, divergence(beta, temperature)))
    found.agrees_with(theirs(fused, micro))


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_jsd_kernel(micro, ours, from_logits, beta):
    def loss(student, teacher, labels):
        log_q, log_p = (logits.flatten(0, 1).log_softmax(-1) for logits in (student, teacher))
        return LigerJSD(beta)(log_q, log_p, labels.flatten())

    ours(micro, (1.0, divergence(beta))).agrees_with(from_logits(loss, micro))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_fused_linear_jsd_kernel(micro, ours, theirs, beta, temperature):
    loss = LigerFusedLinearJSD(beta, temperature=temperature)

    def fused(states, head):
        flat, teacher = states.flatten(0, 1), micro.teacher.flatten(0, 1)
        return loss(flat, head, teacher, micro.teacher_head, micro.labels.flatten())

    found = ours(micro, (temperature**-2, divergence(beta, temperature)))
    found.agrees_with(theirs(fused, micro))


@pytest.mark.usefixtures("scalars")
@pytest.mark.parametrize("log_target", [False, True])
def test_kl_kernel(micro, ours, from_logits, log_target):
    """The kernel has no mask, so it gets only the scored rows."""

    def loss(student, teacher, labels):
        log_q, log_p = (logits[labels != -100].log_softmax(-1) for logits in (student, teacher))
        return LigerKLDIVLoss(reduction="batchmean", log_target=log_target)(log_q, log_p if log_target else log_p.exp())

    ours(micro, (1.0, ForwardKL())).agrees_with(from_logits(loss, micro))


@pytest.mark.usefixtures("scalars")
def test_total_variation_kernel(micro, ours, from_logits):
    def loss(student, teacher, labels):
        q, p = (logits.flatten(0, 1).softmax(-1) for logits in (student, teacher))
        return LigerTVDLoss()(q, p, labels.flatten())

    ours(micro, (1.0, TotalVariation())).agrees_with(from_logits(loss, micro))
