"""TRL 1.16.0: the losses of its GKD, GOLD and distillation trainers and of its self-distillation.

Its beta weights the teacher, as here; 0 is the forward and 1 the reverse KL. No loss is multiplied by T^2. Means are
over the labels that are not -100, where no other denominator is given.
"""

import pytest
import torch
from trl.experimental.gkd import GKDTrainer
from trl.experimental.gold import GOLDTrainer
from trl.experimental.sdft.loss_utils import compute_divergence
from trl.kernels.chunked_divergence import VOCAB_CHUNK_SIZE
from trl.trainer.distillation_trainer import _chunked_divergence_loss

from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.jsd import JensenShannon
from neoplug_losses.reverse_kl import ReverseKL


def self_distillation(student, teacher, labels, beta, temperature):
    log_q, log_p = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
    return compute_divergence(log_q, log_p, beta)[labels != -100].mean()


HEADS = ("student_head", "teacher_head")
FROM_LOGITS = {
    "GKD": GKDTrainer.generalized_jsd_loss,
    "GOLD": GOLDTrainer.generalized_jsd_loss,
    "self-distillation": self_distillation,
}


def divergence(beta, temperature):
    if beta in (0.0, 1.0):
        return (ReverseKL if beta else ForwardKL)(temperature)
    return JensenShannon(temperature, beta)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("trainer", FROM_LOGITS)
def test_generalised_jsd(micro, ours, from_logits, trainer, beta, temperature):
    def loss(student, teacher, labels):
        return FROM_LOGITS[trainer](student, teacher, labels, beta=beta, temperature=temperature)

    ours(micro, (temperature**-2, divergence(beta, temperature))).agrees_with(from_logits(loss, micro))


@pytest.mark.parametrize("kind", ["plain", "hot", "scaled", "capped"])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_divergence_in_tiles(micro, ours, theirs, beta, kind):
    """The loss of the distillation trainer: from hidden states and heads, with scaling and soft cap of logits."""
    temperature = 2.5 if kind == "hot" else 1.0
    scales = (0.25, 0.5) if kind == "scaled" else (1.0, 1.0)
    caps = (3.0, 5.0) if kind == "capped" else (None, None)

    def loss(states, head):
        found, _, tokens = _chunked_divergence_loss(
            states, micro.teacher, head, micro.teacher_head, micro.labels != -100, beta,
            student_logit_scale=scales[0], teacher_logit_scale=scales[1],
            student_final_logit_softcapping=caps[0], teacher_final_logit_softcapping=caps[1],
            temperature=temperature,
        )  # fmt: skip
        assert tokens == (micro.labels != -100).sum()
        return found

    heads = [{"multiplier": scale, "cap": cap} for scale, cap in zip(scales, caps, strict=True)]
    mix = (temperature**-2, divergence(beta, temperature))
    ours(micro, mix, student=heads[0], teacher=heads[1]).agrees_with(theirs(loss, micro))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_divergence_over_two_tiles_of_a_vocabulary(micro, ours, theirs, replaced, beta):
    """The tolerance is wider: torch's log_softmax sums a row in float32, an error of 4e-4 in the JSD's gradient."""
    rng, rows = torch.Generator().manual_seed(7), VOCAB_CHUNK_SIZE + 999
    heads = {name: torch.randn(rows, getattr(micro, name).shape[1], generator=rng) for name in HEADS}
    wide = replaced(micro, **heads)

    def loss(states, head):
        return _chunked_divergence_loss(states, wide.teacher, head, wide.teacher_head, wide.labels != -100, beta)[0]

    ours(wide, (1.0, divergence(beta, 1.0))).agrees_with(theirs(loss, wide), rtol=1e-3)
