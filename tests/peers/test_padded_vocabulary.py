"""Liger pads a smaller head with logits of 0, which adds probability, and ms-swift with the other model's logits."""

import torch
from transformers import AutoModelForCausalLM

from neoplug.data.batch import collate
from neoplug.models.verify import head_name, language_model
from neoplug.models.vocabulary import shared
from neoplug.teachers.live import LiveTeacher
from neoplug.training.objective import objective
from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.forward_kl import ForwardKL

PADDING = 29


def widened(module, fill):
    """Return the model with additional rows of the head that belong to no token."""
    config = module.config.from_dict(module.config.to_dict() | {"vocab_size": module.config.vocab_size + PADDING})
    wide = AutoModelForCausalLM.from_config(config).eval()
    state = module.state_dict()
    for name, weight in state.items():
        if len(weight) == module.config.vocab_size:
            state[name] = torch.cat([weight, torch.full((PADDING, weight.shape[1]), fill)])
    wide.load_state_dict(state)
    return wide.requires_grad_(False)


def step(losses, tokenizer, student, teacher, document):
    rows = [model.config.vocab_size for model in (student, teacher)]
    vocabulary = shared(tokenizer, tokenizer, *rows)
    ours, theirs = (language_model(model, head_name(model), vocabulary) for model in (student, teacher))
    student.requires_grad_(True)
    batch = collate([document(30, range(4, 29))])
    named = losses(cross_entropy=(0.5, CrossEntropy()), forward_kl=(0.5, ForwardKL()))
    total, values = objective(
        named, ours.hidden(batch), ours.head, LiveTeacher(theirs).signal(batch), batch.labels, 0.0
    )
    total.backward()
    return values, student.get_output_embeddings().weight.grad


def test_rows_without_a_token_are_in_neither_distribution(module, losses, tiny_tokenizer, document):
    plain, gradient = step(losses, tiny_tokenizer, module("student"), module("teacher"), document)
    for student, teacher, fill in ((True, False, 0.0), (False, True, 0.0), (True, True, 5.0)):
        ours = widened(module("student"), fill) if student else module("student")
        theirs = widened(module("teacher"), fill) if teacher else module("teacher")
        values, found = step(losses, tiny_tokenizer, ours, theirs, document)
        torch.testing.assert_close(values, plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[: len(gradient)], gradient, rtol=1e-3, atol=1e-4)
        assert torch.count_nonzero(found[len(gradient) :]) == 0


def test_padding_with_zero_logits_changes_the_distribution(module, document):
    ids = torch.from_numpy(document(30, []).input_ids)[None]
    log_q, wide = (
        m(input_ids=ids).logits.log_softmax(-1) for m in (module("student"), widened(module("student"), 0.0))
    )
    assert (wide[..., : log_q.shape[-1]] - log_q).abs().max() > 0.01
