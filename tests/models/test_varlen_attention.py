"""Variable-length attention, compared with unmodified models that read each document alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from neoplug.data.batch import collate
from neoplug.models.varlen_attention import restore_attention, use_varlen
from neoplug.testing.families import FAMILIES, configuration

from .test_language_model import document

BY_NAME = sorted(FAMILIES.keys() - {"bloom", "falcon_h1"})  # one does not call attention by name, one has a state too


def build(family, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(configuration(family, **changes), dtype=torch.float32).eval()


def alone(model, documents):
    return torch.cat([model(torch.from_numpy(each.input_ids)[None], use_cache=False).logits[0] for each in documents])


def in_one_row(model, documents):
    inputs, _ = collate(documents).layout("varlen")
    return model(**inputs).logits[0]


def gradients(model, logits):
    """Of something to which each token says another thing."""
    model.zero_grad()
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def checkpoint(model):
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@pytest.mark.parametrize("family", BY_NAME)
def test_a_row_of_documents_is_each_of_them_alone(family):
    """Logits and every gradient, with documents longer than a window, and neighbours of one length read together."""
    documents = [document(length, seed) for seed, length in enumerate((7, 7, 30, 1, 20, 20, 20))]
    model, own = build(family), build(family)
    assert use_varlen(model)
    ours, theirs = in_one_row(model, documents), alone(own, documents)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients(model, ours), gradients(own, theirs), rtol=1e-3, atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_any_lengths(lengths):
    documents = [document(length, seed) for seed, length in enumerate(lengths)]
    model = build("llama")
    assert use_varlen(model)
    torch.testing.assert_close(in_one_row(model, documents), alone(build("llama"), documents), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "qwen3"])
def test_recomputed_activations_isolate_documents(family):
    """Gradient checkpointing calls attention again, during backward."""
    documents = [document(length, seed) for seed, length in enumerate((7, 30, 20))]
    model, own = build(family), build(family)
    assert use_varlen(model)
    checkpoint(model.train())
    ours, theirs = in_one_row(model, documents), alone(own, documents)
    torch.testing.assert_close(gradients(model, ours), gradients(own, theirs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["gemma2", "llama", "mistral"])
def test_masks_and_a_cache_are_used_as_before(family, tmp_path):
    model, own = build(family), build(family)
    assert use_varlen(model)
    ids = torch.randint(3, 90, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    with torch.no_grad():
        found, expected = (each(ids, attention_mask=mask).logits[mask == 1] for each in (model, own))
        assert torch.equal(found, expected)
        found, expected = (
            each.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False) for each in (model, own)
        )
        assert torch.equal(found, expected)
    model.save_pretrained(tmp_path)
    assert "neoplug" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    restore_attention(model)
    assert model.config._attn_implementation == own.config._attn_implementation


def test_models_that_do_not_call_attention_by_name_are_left_alone():
    model = build("bloom")
    assert not use_varlen(model)
    assert not use_varlen(torch.nn.Linear(2, 2))
    assert model.config._attn_implementation == "eager"
