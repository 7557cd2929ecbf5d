"""Liger's fused losses omit the scaling and the soft cap that a model applies to its logits."""

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from neoplug.data.batch import collate
from neoplug.teachers.live import LiveTeacher
from neoplug.training.objective import objective
from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.forward_kl import ForwardKL

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS = {
    "soft cap": (Gemma2Config, {"final_logit_softcapping": 2.0, "head_dim": 8}, {"final_logit_softcapping": None}),
    "divided": (GraniteConfig, {"logits_scaling": 8.0}, {"logits_scaling": 1.0}),
    "multiplied": (CohereConfig, {"logit_scale": 0.125}, {"logit_scale": 1.0}),
}


def build(config, options, tokens, seed):
    torch.manual_seed(seed)
    made = config(vocab_size=tokens, **SIZES, **options)
    return AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_the_models_own_logits(kind, model, losses, document, tokens):
    config, options, without = KINDS[kind]
    student, teacher = (build(config, options, tokens, seed) for seed in (1, 2))
    ours, theirs = model(student), model(teacher)
    student.requires_grad_(True)
    each = document(24, range(3, 20))
    batch = collate([each])
    named = losses(cross_entropy=(0.5, CrossEntropy()), forward_kl=(0.5, ForwardKL(2.0)))
    total, _ = objective(named, ours.hidden(batch), ours.head, LiveTeacher(theirs).signal(batch), batch.labels, 0.0)
    total.backward()
    found = {name: parameter.grad for name, parameter in student.named_parameters()}
    student.zero_grad()

    ids = torch.from_numpy(each.input_ids)[None]
    logits, targets = (m(input_ids=ids).logits[0, 2:19].double() for m in (student, teacher))
    log_q, log_p = (torch.log_softmax(z / 2, -1) for z in (logits, targets))
    expected = 0.5 * functional.cross_entropy(logits, ids[0, 3:20], reduction="sum")
    expected = expected + 0.5 * 4 * functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
    expected.backward()
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")

    unscaled = build(config, options | without, tokens, 1)(input_ids=ids).logits[0, 2:19].double()
    assert (unscaled - logits).abs().max() > 0.1  # omitting it changes the logits
