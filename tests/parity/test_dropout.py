"""A base with dropout in its configuration is trained without it, and the saved configuration keeps it."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, FalconConfig, GPT2Config, OPTConfig

from neoplug.models import dropout
from neoplug.models.load import load_model
from neoplug.models.resolve import locate
from neoplug.registry import Plugins

# raised within peft
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v(6|ersion):FutureWarning")

IDS = torch.arange(3, 43).view(2, 20)


def save(folder, tokenizer, config):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def gpt2(rows):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.1}
    return GPT2Config(vocab_size=rows, bos_token_id=1, eos_token_id=2, **sizes)


def opt(rows):
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return OPTConfig(vocab_size=rows, word_embed_proj_dim=32, layerdrop=0.5, **sizes)


def falcon(rows):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return FalconConfig(vocab_size=rows, hidden_dropout=0.3, attention_dropout=0.2, **sizes)


@pytest.mark.parametrize("config", [gpt2, opt, falcon])
def test_training_mode_equals_evaluation_mode(tmp_path, tiny_tokenizer, config):
    folder = save(tmp_path / "model", tiny_tokenizer, config(len(tiny_tokenizer)))
    model = load_model(
        locate(str(folder)), dtype=torch.float32, device="cpu", attn_implementation=None, plugins=Plugins({}),
        role="student", section="student.load",
    )  # fmt: skip
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        evaluated = stored.eval()(IDS).logits
        assert (stored.train()(IDS).logits - evaluated).abs().max() > 1e-3
        torch.testing.assert_close(model.train()(IDS).logits, evaluated, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adapter", [{"full": {}}, {"lora": {"r": 4, "lora_dropout": 0.5}}], ids=["full", "lora"])
def test_the_first_step_of_a_run_is_the_evaluated_model(run, tmp_path, tiny_tokenizer, tiny_chat, adapter):
    folder = save(tmp_path / "model", tiny_tokenizer, gpt2(len(tiny_tokenizer)))
    done = run(
        student={"model": str(folder), "dtype": "float32"},
        data={"source": str(tiny_chat), "held_out": 2, "packing": False},
        adapter=adapter,
        loss={"cross_entropy": {}},
        train={"max_steps": 1, "save_steps": 9},
    )
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    total, count = 0.0, 0
    for document in done.documents(0)[0]:
        ids, scored = torch.from_numpy(document.input_ids), torch.from_numpy(document.loss_mask[1:])
        logits = stored(input_ids=ids[None]).logits[0, :-1][scored]
        total += functional.cross_entropy(logits, ids[1:][scored], reduction="sum").item()
        count += int(scored.sum())
    assert done.lines[0]["loss"] == pytest.approx(total / count, rel=1e-5)
    if "full" in adapter:
        written = json.loads((done.path / "model" / "config.json").read_text())
        assert {written[name] for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")} == {0.1}
        assert written["use_cache"] is True


@pytest.mark.slow
def test_dropout_of_an_adapter_is_applied(run, tiny_student, tiny_chat):
    """At the start B is zero, so A's dropout changes B's gradient, not the loss."""
    lines = []
    for rate in (0.0, 0.5):
        done = run(
            student={"model": str(tiny_student), "dtype": "float32"},
            data={"source": str(tiny_chat), "held_out": 2, "packing": False},
            adapter={"lora": {"r": 4, "lora_dropout": rate}},
            loss={"cross_entropy": {}},
            train={"max_steps": 1, "save_steps": 9},
            output=f"rate-{rate}",
        )
        lines += done.lines
    without, with_it = lines
    assert without["loss"] == with_it["loss"]
    assert abs(without["grad_norm"] - with_it["grad_norm"]) > 0.01


def test_only_dropout_probabilities_are_changed():
    config = gpt2(50)
    config.drop_last_layer, config.dropout_positions, config.token_dropout = True, 7.0, None
    original = GPT2Config.from_dict(config.to_dict())
    before = original.to_dict()
    dropout.switch_off(config)
    assert {name for name, value in config.to_dict().items() if value != before[name]} == {
        "attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout"
    }  # fmt: skip
    dropout.restore(config, original)
    assert config.to_dict() == before


def test_dropout_of_a_nested_model_is_disabled():
    inner = SimpleNamespace(hidden_dropout=0.2, hidden_size=8)
    inner.get_text_config = lambda: inner
    outer = SimpleNamespace(attention_dropout=0.1, get_text_config=lambda: inner)
    dropout.switch_off(outer)
    assert (outer.attention_dropout, inner.hidden_dropout, inner.hidden_size) == (0.0, 0.0, 8)
