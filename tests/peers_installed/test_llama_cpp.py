"""llama.cpp, by xllamacpp: next-token probabilities of the base in GGUF and of the exported LoRA on it.

Only these reveal rows of queries and keys in another order than the base's.
"""

import json

import gguf
import numpy as np
import pytest
import torch
import xllamacpp
from transformers import AutoModelForCausalLM

from neoplug.export.gguf_lora import PAIRED, PLAIN
from neoplug.export.lora import export_lora
from neoplug.models.resolve import locate
from neoplug.runs.directory import RunDir
from neoplug.testing.families import make

pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")  # raised within peft
IDS = list(range(40, 52))  # fewer than the families' windows
FAMILIES = {"granite": {}, "llama": {}, "mistral": {}, "olmo2": {}, "qwen2": {}, "qwen3": {}}
FAMILIES |= {"smollm3": {"no_rope_layers": [1, 1]}}  # llama.cpp leaves out each fourth layer's positions
NEAR = 0.05  # nats: tolerance for llama.cpp's attention in float16


def log_probabilities(model):
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0, -1].log_softmax(-1)


def by_llama_cpp(file, lora=None):
    """Return the log-probabilities [V] of the token after IDS."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.warmup, parameters.fit_params = str(file), 64, False, False
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if lora:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
    answer = xllamacpp.Server(parameters).handle_completions({"prompt": IDS, "n_predict": 1, "n_probs": 300})
    answer = json.loads(answer) if isinstance(answer, str) else answer
    found = answer["choices"][0]["logprobs"]["content"] if "choices" in answer else answer["completion_probabilities"]
    return {token["id"]: token["logprob"] for token in found[0]["top_logprobs"]}


def write_base(file, model):
    """Write a model as GGUF, with its number of tokens and a dummy tokenizer."""
    config = model.config
    architecture = (PLAIN | PAIRED)[config.model_type]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{number}" for number in range(config.vocab_size)])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            place = names.get_name(name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(place, np.ascontiguousarray(as_llama_cpp(name, weight, config).numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def as_llama_cpp(name, weight, config):
    """Return the weight with rows i and i + half of each head adjacent, in families where llama.cpp requires that."""
    for layer, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if config.model_type in PAIRED and f".{layer}." in name:
            half = len(weight) // heads // 2
            order = [2 * half * head + part * half + i for head in range(heads) for i in range(half) for part in (0, 1)]
            return weight[order]
    return weight


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_with_the_lora_has_the_probabilities_of_the_student(tmp_path, family):
    from peft import LoraConfig, get_peft_model

    folder = make(family, tmp_path / "base", **FAMILIES[family])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    file = write_base(tmp_path / "base.gguf", model)
    base = log_probabilities(model)
    record = {"source": str(folder), "revision": None, "sha256": locate(str(folder)).sha256}
    resolved = {
        "format": 1,
        "student": {"model": str(folder)},
        "data": {},
        "loss": {},
        "adapter": {"dora": {}},
        "seed": 0,
    }
    lock = {
        "format": 1, "seed": 0, "platform": "", "versions": {}, "hardware": {"cpu": "", "gpus": []},
        "data": {"fingerprint": ""}, "models": {"student": record},
    }  # fmt: skip
    run = RunDir.create(tmp_path / "run", resolved, lock)
    torch.manual_seed(5)
    options = {"r": 4, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    student = get_peft_model(model, LoraConfig(use_dora=True, **options))
    for name, weight in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    student.save_pretrained(run.adapter)
    assert export_lora(run.path, tmp_path / "lora", rank=48, gguf=True).exact
    wanted = log_probabilities(student)
    assert (wanted - base).abs().max() > 1
    for expected, lora in ((base, None), (wanted, tmp_path / "lora" / "adapter.gguf")):
        found = by_llama_cpp(file, lora)
        assert len(found) > 200
        assert max(abs(found[token] - float(expected[token])) for token in found) < NEAR
