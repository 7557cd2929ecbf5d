"""The plugin `liger` in models of all families: Liger's kernels for RMSNorm and SwiGLU, in Triton's interpreter.

The interpreter computes with numpy: how a GPU rounds, and how fast it is, is not tested here.
"""

import copy
import logging
from collections import Counter

import pytest
import torch
import triton.language as tl
from liger_kernel.ops import rms_norm
from torch import nn
from torch.nn import functional

from neoplug.models.load import load_model
from neoplug.models.resolve import locate
from neoplug.registry import Plugins
from neoplug.testing.families import FAMILIES, make
from neoplug_models.liger import Liger, fuse

pytestmark = pytest.mark.usefixtures("scalars", "interpreted")

NEITHER = {"bloom", "gpt2", "gpt_neox", "opt"}
GEGLU = {"gemma2", "gemma3_text"}


@pytest.fixture
def interpreted(monkeypatch):
    """Let the interpreter compute the inverse square root, which the kernel takes from NVIDIA's library."""
    monkeypatch.setattr(rms_norm, "rsqrt", lambda x: 1.0 / tl.sqrt(x))


def loaded(folder, dtype=torch.float32, plugin=None):
    plugins = Plugins({"student.load": {"liger": plugin} if plugin else {}})
    where = {"device": "cpu", "attn_implementation": None, "role": "student", "section": "student.load"}
    return load_model(locate(str(folder)), dtype=dtype, plugins=plugins, **where)


def numbers(model, ids, times=1):
    """Return logits, and gradients by embeddings and by the weights of norms after `times` backward passes."""
    read = {name: weight.requires_grad_() for name, weight in model.named_parameters() if weight.dim() == 1}
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    target = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    for _ in range(times):
        found = torch.autograd.grad(target, [embedded, *read.values()], retain_graph=True, allow_unused=True)
    return logits.detach(), dict(zip(["embeddings", *read], found, strict=True))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_computes_the_same(tmp_path, family, times):
    """Also where the gradient is computed twice from one graph, in which Liger's own SwiGLU is wrong."""
    folder = make(family, tmp_path / "model")
    plain, fast = loaded(folder), loaded(folder)
    fused, kept = fuse(fast)
    assert bool(fused) == (family not in NEITHER)
    assert bool(kept) == (family in GEGLU)
    ids = torch.arange(2, 26).reshape(2, 12)
    logits, gradients = numbers(plain, ids)
    found, by = numbers(fast, ids, times)
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    for name, expected in gradients.items():
        if expected is not None:
            torch.testing.assert_close(by[name], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


class ScaledRMSNorm(nn.Module):
    """An RMSNorm by its name, whose numbers are another's."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(16)), 1e-6

    def forward(self, hidden):
        return 1.01 * functional.rms_norm(hidden, (16,), self.weight, self.eps)


class Gated(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(24, 8)
        self.act_fn = activation

    def forward(self, hidden):
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))


def test_layers_that_compute_something_else_keep_their_code():
    model = nn.ModuleList([ScaledRMSNorm(), Gated(functional.gelu), Gated(functional.silu)])
    fused, kept = fuse(model)
    assert fused == Counter(SwiGLU=1)
    assert kept == Counter(
        {
            "ScaledRMSNorm computes other numbers than its kernel": 1,
            "Gated computes other numbers than its kernel": 1,
        }
    )
    assert "forward" not in vars(model[0])
    assert "forward" not in vars(model[1])


def test_the_kernel_of_a_norm_is_chosen_by_its_numbers():
    """Gemma multiplies by 1 + weight, and its weight may be any."""

    class GemmaRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.randn(16)), 1e-6

        def forward(self, hidden):
            return functional.rms_norm(hidden, (16,), 1 + self.weight, self.eps)

    norm = GemmaRMSNorm()
    assert fuse(nn.ModuleList([norm])) == (Counter(RMSNorm=1), Counter())
    hidden = torch.randn(3, 16)
    torch.testing.assert_close(norm(hidden), functional.rms_norm(hidden, (16,), 1 + norm.weight, 1e-6))


def test_types_that_differ_are_left_to_the_norm(tmp_path):
    """A norm with a float32 weight answers bfloat16 inputs, as under autocast, in float32."""
    model = loaded(make("llama", tmp_path / "model"))
    fuse(model)
    hidden = torch.randn(2, model.config.hidden_size, dtype=torch.bfloat16)
    expected = copy.deepcopy(model.model.norm)
    del expected.forward
    assert torch.equal(model.model.norm(hidden), expected(hidden))
    assert model.model.norm(hidden).dtype == torch.float32


def test_swiglu_in_a_type_without_proof_is_computed_as_before(tmp_path):
    """Under autocast, a model with float32 weights multiplies in bfloat16, which the interpreter cannot."""
    folder = make("llama", tmp_path / "model")
    plain, fast = (loaded(folder).model.layers[0].mlp for _ in range(2))
    assert fuse(fast)[0] == Counter(SwiGLU=1)
    hidden = torch.randn(2, 3, fast.gate_proj.in_features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(hidden), plain(hidden))


def test_a_copy_reads_its_own_weights(tmp_path):
    """Saving compares the student with a copy that is loaded anew."""
    model = loaded(make("llama", tmp_path / "model"))
    fuse(model)
    copied = copy.deepcopy(model)
    for weight in copied.parameters():
        nn.init.zeros_(weight)
    ids = torch.arange(2, 10)[None]
    assert not copied(input_ids=ids).logits.any()
    assert model(input_ids=ids).logits.any()


def test_norms_in_bfloat16(tmp_path):
    """The interpreter multiplies bfloat16 as whole numbers, in SwiGLU, which then keeps its own code."""
    folder = make("llama", tmp_path / "model")
    plain, fast = loaded(folder, torch.bfloat16), loaded(folder, torch.bfloat16)
    assert fuse(fast) == (Counter(RMSNorm=5), Counter({"LlamaMLP computes other numbers than its kernel": 2}))
    ids = torch.arange(2, 26).reshape(2, 12)
    exact = loaded(folder)(input_ids=ids).logits
    ours, theirs = ((model(input_ids=ids).logits - exact).norm() / exact.norm() for model in (fast, plain))
    assert ours < 2 * theirs


def test_the_log_says_which_layers_have_kernels(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    loaded(make("llama", tmp_path / "model"), plugin=Liger())
    assert "liger: kernels compute 5 of RMSNorm and 2 of SwiGLU in the student" in caplog.text
    loaded(make("gpt2", tmp_path / "other"), plugin=Liger())
    assert "liger: the layers of the student compute as without it: it has neither RMSNorm nor SwiGLU" in caplog.text
