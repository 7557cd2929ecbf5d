"""Peft's other adapters: their size by formula, what they fit to a model's sizes, what they refuse."""

import logging
from math import ceil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from neoplug.errors import RecipeError
from neoplug.registry import find
from neoplug_adapters.c3a import C3A
from neoplug_adapters.oft import OFT
from neoplug_adapters.road import RoAd

# peft calls transformers by old names
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")
N, M = 48, 96  # of up_proj: inputs, outputs
SIZES = {
    "c3a": lambda c: N * M // c.block_size,
    "delora": lambda c: c.r * (N + M) + 1,
    "dora": lambda c: c.r * (N + M) + M,
    "fourierft": lambda c: c.n_frequency,
    "gralora": lambda c: c.r * (N + M),
    "hira": lambda c: c.r * (N + M),
    "hra": lambda c: c.r * N,
    "ia3": lambda c: M,
    "lily": lambda c: c.r * N + c.num_B * c.r + c.num_B * c.r * M,
    "loha": lambda c: 2 * c.r * (N + M),
    "lokr": lambda c: 8 * 6 + 12 * 8,
    "lora": lambda c: c.r * (N + M),
    "lora_fa": lambda c: c.r * M,
    "mica": lambda c: c.r * N,
    "miss": lambda c: c.r * M,
    "oft": lambda c: N * (c.oft_block_size - 1) // 2,
    "osf": lambda c: (N - N // 2) * (N + M + 1),
    "psoft": lambda c: c.r * (c.r - 1) // 2 + 2 * c.r,
    "pvera": lambda c: M + 2 * c.r,
    "randlora": lambda c: ceil(N / c.r) * (c.r + N),
    "road": lambda c: M,
    "tinylora": lambda c: c.u,
    "unilora": lambda c: c.theta_d_length,
    "vblora": lambda c: c.r * c.num_vectors * (N + M) // c.vector_length + c.num_vectors * c.vector_length,
    "vera": lambda c: M + c.r,
    "waveft": lambda c: c.n_frequency,
}


def skeleton():
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"vocab_size": 64, "hidden_size": N, "intermediate_size": M, "num_hidden_layers": 1}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).requires_grad_(False)


def adapted(adapter):
    return adapter.add_adapter(skeleton(), None, 1, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SIZES)
def test_its_size_is_the_formula(name, tmp_path):
    model = adapted(find(name, tmp_path).load()(target_modules=["up_proj"]))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == SIZES[name](model.peft_config["default"])


def test_what_is_fitted_is_told(caplog):
    with caplog.at_level(logging.INFO, logger="neoplug"):
        adapted(C3A())
    assert "c3a: block_size is 24, not 256: fitted to the sizes of the targets" in caplog.text


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (C3A(block_size=32), "block_size is 32, which does not divide all sizes of the targets"),
        (OFT(oft_block_size=5), "oft_block_size is 5, which does not divide"),
        (RoAd(group_size=3), "group_size is 3, which does not divide"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(adapter, words):
    with pytest.raises(RecipeError, match=words) as caught:
        adapted(adapter)
    (problem,) = caught.value.problems
    assert problem.path == ("adapter", adapter.name, words.split()[0])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vera", {"r": 0}, r"^r is 0"),
        ("loha", {"module_dropout": 1.0}, r"^module_dropout is 1.0"),
        ("delora", {"delora_lambda": -1}, r"^delora_lambda is -1"),
        ("hra", {"r": 3}, r"^r is 3, but must be even"),
        ("hira", {"init_weights": False}, r"^init_weights is false"),
    ],
)
def test_wrong_options_are_refused_at_once(name, options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        find(name, tmp_path).load()(**options)
