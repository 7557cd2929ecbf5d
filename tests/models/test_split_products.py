"""Heads whose products are made of bfloat16 ones, as on CUDA: compared with float64; the kernel is that of the CPU."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from neoplug.models import head as heads
from neoplug.models import split_products
from neoplug.models.head import Head
from neoplug.models.split_products import split
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins
from neoplug.teachers.signals import StatesSignal
from neoplug.training import objective as module
from neoplug.training.objective import Loss, objective
from neoplug_losses.forward_kl import ForwardKL

ROWS, HIDDEN, TOKENS = 300, 64, 70
KINDS = ("trained", "bias", "adapted", "variant", "saved", "part")


class Model(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.other = nn.Linear(HIDDEN, HIDDEN, bias=False)  # not called
        self.lm_head = nn.Linear(HIDDEN, ROWS, bias=bias)

    def forward(self, hidden):
        return self.lm_head(hidden)


def build(kind):
    """Return a model whose head is trained in float32 or adapted, the base then in bfloat16."""
    torch.manual_seed(1)
    model = Model(bias=kind == "bias")
    model.lm_head.weight.data.mul_(8)
    if kind in ("trained", "bias", "part"):
        return model
    model.to(torch.bfloat16)
    options = {"modules_to_save": ["lm_head"], "target_modules": ["other"]} if kind == "saved" else {
        "target_modules": ["lm_head"], "use_dora": kind == "variant"
    }  # fmt: skip
    adapted = get_peft_model(model, LoraConfig(r=4, **options), autocast_adapter_dtype=True)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float() + 0.02 * torch.randn(parameter.shape)
    return adapted


def vocabulary(kind):
    return Vocabulary(100, torch.arange(0, ROWS, 3)) if kind == "part" else Vocabulary(ROWS)


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Let the CPU take the way of CUDA: products of bfloat16 matrices are exact in float32."""
    products = []

    def multiply(left, right):
        assert left.dtype == right.dtype == torch.bfloat16
        products.append((*left.shape, right.shape[1]))
        return left.float() @ right.float()

    monkeypatch.setattr(split_products, "multiply", multiply)
    monkeypatch.setattr(heads, "has_kernel", lambda device: True)
    monkeypatch.setattr(module, "BLOCK", 32 * ROWS)
    return products


def head_of(model, kind, dtype):
    (found,) = [m for name, m in model.named_modules() if name.endswith("lm_head")]
    return Head(found, vocabulary(kind), dtype=dtype)


def gradients(kind, dtype, states, teacher):
    """Return the loss and all gradients of the forward KL; in float64 by whole logits where `dtype` is float64."""
    model = build(kind)
    if dtype == torch.float64:
        model.double()
        hidden = states.double().requires_grad_()
        ids = vocabulary(kind).ids
        keep = torch.arange(ROWS) if ids is None else ids
        log_q, log_p = (torch.log_softmax(model(h)[:, keep], -1) for h in (hidden, teacher.double()))
        total = nn.functional.kl_div(log_q, log_p.detach(), log_target=True, reduction="sum")
    else:
        hidden = states.detach().clone().requires_grad_()
        with torch.no_grad():
            signal = StatesSignal(teacher, head_of(build(kind), kind, dtype))
        plugins = Plugins({"loss": {"forward_kl": ForwardKL()}})
        functions = plugins.functions("token_loss")["forward_kl"], plugins.functions("token_gradient")["forward_kl"]
        labels = vocabulary(kind).ids
        labels = torch.zeros(TOKENS, dtype=torch.int64) if labels is None else labels[:1].repeat(TOKENS)
        total, _ = objective(
            [Loss("forward_kl", 1.0, *functions)], hidden, head_of(model, kind, dtype), signal, labels, 0.0
        )
    total.backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": total.detach(), "hidden": hidden.grad, **named}


def errors(found, exact):
    return {name: float((found[name].double() - exact[name]).norm() / exact[name].norm()) for name in exact}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16 states", "float32 states"])
def test_gradients_have_the_error_of_a_rounding_to_bfloat16(as_on_cuda, kind, dtype):
    """Student and teacher are close, so rounded logits would show; a frozen head is held to the same limit."""
    torch.manual_seed(2)
    teacher = torch.randn(TOKENS, HIDDEN).to(dtype)
    states = (teacher + 0.05 * torch.randn(TOKENS, HIDDEN)).to(dtype)
    exact = gradients(kind, torch.float64, states, teacher)
    found = errors(gradients(kind, torch.bfloat16, states, teacher), exact)
    assert as_on_cuda
    assert len(found) > 2
    assert found.pop("loss") < 1e-4
    assert max(found.values()) < (6e-3 if kind in ("adapted", "variant") else 3e-3), found


@pytest.mark.parametrize("kind", KINDS)
def test_logits_have_16_bits(as_on_cuda, kind):
    """A trained weight that is only rounded has 8 bits: ten times the limit."""
    torch.manual_seed(2)
    hidden, model, kept = torch.randn(TOKENS, HIDDEN).bfloat16(), build(kind), vocabulary(kind).ids
    logits = head_of(model, kind, torch.bfloat16)(hidden)
    exact = model.double()(hidden.double())
    scale, exact = exact.abs().max(), exact if kept is None else exact[:, kept]
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().max() < 3e-5 * scale
    if kind in ("trained", "saved"):
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().double()
        assert (model(hidden.double()) - exact).abs().max() > 3e-4 * scale


def test_values_of_bfloat16_take_one_product(as_on_cuda):
    """Two parts of a trained weight lie side by side; a frozen base and states in bfloat16 have one part."""
    hidden = torch.randn(TOKENS, HIDDEN).bfloat16()
    head_of(build("trained"), "trained", torch.bfloat16)(hidden)
    assert as_on_cuda == [(TOKENS, 2 * HIDDEN, ROWS)]
    as_on_cuda.clear()
    head_of(build("adapted"), "adapted", torch.bfloat16)(hidden)
    assert (TOKENS, HIDDEN, ROWS) in as_on_cuda
    assert sum(outputs == ROWS and inputs >= HIDDEN for _, inputs, outputs in as_on_cuda) == 1


@pytest.mark.parametrize(("kind", "dtype"), [("trained", torch.float32), ("adapted", torch.float32)])
def test_a_model_in_float32_has_float32_products(as_on_cuda, kind, dtype):
    head_of(build(kind), kind, dtype)(torch.randn(TOKENS, HIDDEN))
    assert as_on_cuda == []


def test_the_cpu_has_float32_products(monkeypatch):
    monkeypatch.delattr(split_products, "multiply")
    head_of(build("adapted"), "adapted", torch.bfloat16)(torch.randn(TOKENS, HIDDEN))


def test_two_parts_hold_16_bits():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 1000
    assert ((sum(part.double() for part in split(values)) - values).abs() <= 2**-16 * values.abs()).all()
    assert len(split(values.bfloat16())) == 1
