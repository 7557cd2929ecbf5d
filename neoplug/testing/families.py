"""Tiny random models of many families with a common tokenizer, to test a plugin on all of them in seconds.

    from neoplug.testing.families import FAMILIES, make

    for family in FAMILIES:
        make(family, Path("models") / family)        # student: {model: models/FAMILY}

Each keeps the features of its family: soft caps, scaled logits, biases, fused or transposed layers, windows, experts.
All weights are perturbed, so that those initialised to 0 or 1 affect the logits too; the logits are far from uniform.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # pad, begin, end
WINDOW = 16  # tokens, where a family has sliding attention

USUAL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA = {"query_pre_attn_scalar": 8, "tie_word_embeddings": True, **ALTERNATING}
NO_GROUPS = {"num_key_value_heads": None, "head_dim": None}  # as many key heads as query heads
MAMBA = {
    "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}  # fmt: skip
# model_type -> options of its configuration besides USUAL; None removes one of these
FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": {**NO_GROUPS, "n_head": 4, "n_layer": 2, "tie_word_embeddings": True},
    "cohere": {"logit_scale": 0.25, "tie_word_embeddings": True},
    "falcon_h1": {**MAMBA, "lm_head_multiplier": 0.5, "embedding_multiplier": 2.0, "key_multiplier": 0.7},
    "gemma2": {**GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": GEMMA,
    "gpt2": {**NO_GROUPS, "n_inner": 48, "tie_word_embeddings": True},
    "gpt_neox": {**NO_GROUPS, "rotary_pct": 0.5},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.7},
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": {},
    "opt": {**NO_GROUPS, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2, "tie_word_embeddings": True},
    "phi3": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "smollm3": {"no_rope_layers": [1, 0], "tie_word_embeddings": True},
}

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED_EXPERTS = {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
                  "topk_group": 1}  # fmt: skip
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "head_dim": None, "num_key_value_heads": 4,
}  # fmt: skip
# Further families with experts, which the pages of measurements do not list; in the first two, the first layer is dense
MORE_FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {**SHARED_EXPERTS, **LATENT},
    "glm4_moe": SHARED_EXPERTS,
    "gpt_oss": {
        "num_local_experts": 4, "num_experts_per_tok": 2, **ALTERNATING,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes with a chat template, common to all families."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    pad, begin, end = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, bos_token=begin, eos_token=end, chat_template=CHAT_TEMPLATE
    )


def configuration(family: str, **changes: Any) -> PretrainedConfig:
    """Return the family's tiny configuration; `changes` replace its options, None removes one."""
    from transformers import AutoConfig

    tokens = {"vocab_size": len(SPECIAL) + 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    options = USUAL | tokens | (FAMILIES | MORE_FAMILIES)[family] | changes
    return AutoConfig.for_model(family, **{name: value for name, value in options.items() if value is not None})


def make(family: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a random model and the tokenizer to `folder`, for `student: {model: FOLDER}`; return `folder`.

    changes  options of the family's configuration, as num_hidden_layers or tie_word_embeddings; None removes one
    """
    from neoplug.models.quiet import quiet

    with quiet():
        random_model(family, seed=seed, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def random_model(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return a random model in evaluation mode, without gradients; arguments as those of `make`."""
    from transformers import AutoModelForCausalLM

    from neoplug.models.quiet import quiet

    with quiet(), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(configuration(family, **changes), dtype=torch.float32)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)
