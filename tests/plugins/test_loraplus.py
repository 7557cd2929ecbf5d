"""LoRA+: the groups of peft, plain LoRA at ratio 1 bit for bit, and what it refuses."""

import copy
from types import SimpleNamespace

import pytest
import torch

from neoplug.errors import UsageError
from neoplug_adapters.dora import DoRA
from neoplug_adapters.full import Full
from neoplug_adapters.lora import LoRA
from neoplug_adapters.loraplus import LoRAPlus
from neoplug_optimizers.adamw import AdamW

RATE = 3e-3


@pytest.fixture(scope="module")
def base(tiny_teacher):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32).eval().requires_grad_(False)


def adapted(adapter, base):
    return adapter.add_adapter(copy.deepcopy(base), None, 1, torch.Generator().manual_seed(0))


def rates(model, groups):
    """Return {name: learning rate}, and check that each trainable parameter is in exactly one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = [(names[id(parameter)], group["lr"]) for group in groups for parameter in group["params"]]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


@pytest.mark.parametrize(
    "adapter",
    [
        LoRA(),
        DoRA(),
        LoRA(target_modules=["q_proj", "embed_tokens"]),
        LoRA(target_modules=r".*(v_proj|embed_tokens)", use_rslora=True),
    ],
)
def test_the_groups_equal_those_of_peft(base, adapter):
    from peft.optimizers import create_loraplus_optimizer

    model = adapted(adapter, base)
    expected = create_loraplus_optimizer(model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=8)
    found = LoRAPlus(lr_ratio=8).param_groups(model, RATE)
    assert rates(model, found) == rates(model, expected.param_groups)


def test_a_magnitude_has_the_learning_rate_of_b(base):
    model = adapted(DoRA(), base)
    found = rates(model, LoRAPlus().param_groups(model, RATE))
    assert {found[name] for name in found if "magnitude" in name or "lora_B" in name} == {16 * RATE}
    assert {found[name] for name in found if "lora_A" in name} == {RATE}


@pytest.mark.slow
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("adapter", [LoRA(), DoRA(), LoRA(bias="lora_only")])
def test_ratio_one_is_plain_lora_bit_for_bit(base, adapter, weight_decay):
    input_ids = torch.arange(24).reshape(2, 12) * 7
    ends = {}
    for ratio in (None, 1.0, 16.0):
        model = adapted(adapter, base)
        plain = [{"params": [p for p in model.parameters() if p.requires_grad], "lr": RATE}]
        groups = plain if ratio is None else LoRAPlus(lr_ratio=ratio).param_groups(model, RATE)
        optimizer = AdamW(weight_decay=weight_decay).make_optimizer(groups)
        for _ in range(3):
            model(input_ids=input_ids, labels=input_ids).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        ends[ratio] = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(ends[None][name], ends[1.0][name]) for name in ends[None])
    assert not all(torch.equal(ends[None][name], ends[16.0][name]) for name in ends[None])


def recipe(*adapter):
    return SimpleNamespace(adapter={name: {} for name in adapter})


@pytest.mark.parametrize("beside", ["lora", "dora@wide", "neoplug:lora", "somebodys:moslora"])
def test_it_is_accepted_with_a_low_rank_adapter(beside):
    assert LoRAPlus().check(recipe(beside, "loraplus")) == []


@pytest.mark.parametrize("beside", [["full"], []])
def test_it_is_refused_alone_or_with_full(beside):
    (problem,) = LoRAPlus().check(recipe(*beside, "loraplus@fast"))
    assert problem.path == ("adapter", "loraplus@fast")
    assert "low-rank" in problem.why
    assert "`lora` or `dora`" in problem.fix


def test_a_model_without_b_is_refused(base):
    model = Full().add_adapter(copy.deepcopy(base))
    with pytest.raises(UsageError, match="finds no B matrices"):
        LoRAPlus().param_groups(model, RATE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr_ratio": 0.5}, r"^lr_ratio is 0.5"),
        ({"lr_ratio": float("inf")}, r"^lr_ratio is inf"),
        ({"lr_embedding": 0.0}, r"^lr_embedding is 0.0"),
    ],
)
def test_wrong_rates_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        LoRAPlus(**options)
