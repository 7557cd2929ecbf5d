"""Variable-length attention, compared with unmodified models that compute each document separately."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from neoplug.data.batch import collate
from neoplug.models import varlen_attention
from neoplug.models.varlen_attention import restore_attention, use_varlen
from neoplug.testing.families import FAMILIES, configuration
from tests.cuda.emulated import documents as by_document

from .test_language_model import document

# Without bloom, which does not call attention by name, and falcon_h1, which has a recurrent state too.
BY_NAME = sorted(FAMILIES.keys() - {"bloom", "falcon_h1"})


def build(family, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(configuration(family, **changes), dtype=torch.float32).eval()


def separately(model, documents):
    return torch.cat([model(torch.from_numpy(each.input_ids)[None], use_cache=False).logits[0] for each in documents])


def in_one_row(model, documents):
    inputs, _ = collate(documents).layout("varlen")
    return model(**inputs).logits[0]


def gradients(model, logits):
    """Return the gradients of a sum that weights each logit differently."""
    model.zero_grad()
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def checkpoint(model):
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@pytest.mark.parametrize("family", BY_NAME)
def test_documents_in_one_row_equal_separate_documents(family):
    """Logits and all gradients; some documents are longer than a window, and neighbours have equal lengths."""
    documents = [document(length, seed) for seed, length in enumerate((7, 7, 30, 1, 20, 20, 20))]
    model, own = build(family), build(family)
    assert use_varlen(model)
    packed, expected = in_one_row(model, documents), separately(own, documents)
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients(model, packed), gradients(own, expected), rtol=1e-3, atol=1e-3)


def flash(query, key, value, starts, _, longest, __, scale=None, window_size=None, enable_gqa=False):
    """Return what torch's `varlen_attn` does by its definition, in any type, so that autograd differentiates it."""
    assert longest == starts.diff().max()
    assert enable_gqa == (query.shape[1] != key.shape[1])
    pieces = by_document(query, key, value, starts, scale, window_size)
    return torch.cat([(weights @ states[2]).transpose(0, 1) for _, states, weights in pieces])


@pytest.mark.parametrize("grouped", [True, False], ids=["grouped heads", "repeated heads"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_one_call_for_all_documents_equals_separate_documents(family, grouped, monkeypatch):
    """What a GPU does in 16 bits; FlashAttention is replaced by its definition, in float32."""
    calls = []
    monkeypatch.setattr(varlen_attention, "varlen_attn", lambda *a, **k: calls.append(1) or flash(*a, **k))
    monkeypatch.setattr(varlen_attention, "_fits_flash", lambda *_: True)
    monkeypatch.setattr(varlen_attention, "GROUPED_HEADS", grouped)
    documents = [document(length, seed) for seed, length in enumerate((7, 7, 30, 1, 20))]
    model, own = build(family), build(family)
    assert use_varlen(model)
    packed, expected = in_one_row(model, documents), separately(own, documents)
    assert len(calls) == model.config.num_hidden_layers
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients(model, packed), gradients(own, expected), rtol=1e-3, atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_documents_of_any_lengths_are_isolated(lengths):
    documents = [document(length, seed) for seed, length in enumerate(lengths)]
    model = build("llama")
    assert use_varlen(model)
    torch.testing.assert_close(
        in_one_row(model, documents), separately(build("llama"), documents), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", ["gemma2", "qwen3"])
def test_recomputed_activations_isolate_documents(family):
    """Gradient checkpointing calls attention again, during backward."""
    documents = [document(length, seed) for seed, length in enumerate((7, 30, 20))]
    model, own = build(family), build(family)
    assert use_varlen(model)
    checkpoint(model.train())
    packed, expected = in_one_row(model, documents), separately(own, documents)
    torch.testing.assert_close(gradients(model, packed), gradients(own, expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["gemma2", "llama", "mistral"])
def test_masks_and_a_cache_still_give_the_models_results(family, tmp_path):
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


def test_models_that_do_not_call_attention_by_name_are_unchanged():
    model = build("bloom")
    assert not use_varlen(model)
    assert not use_varlen(torch.nn.Linear(2, 2))
    assert model.config._attn_implementation == "eager"
