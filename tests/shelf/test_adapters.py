"""Every installed adapter: it starts as the base and leaves it alone, its seed decides, plain peft loads its files."""

import copy

import pytest
import torch

from neoplug.testing import call

RATE = 1e-2
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")  # peft calls transformers by old names


@pytest.fixture(scope="module")
def base(tiny_student):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture
def model(base):
    return copy.deepcopy(base)


@pytest.fixture(scope="module")
def input_ids():
    return torch.arange(24).reshape(2, 12) * 7


def adapted(adapter, model, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return call(adapter.add_adapter, {"model": model, "batches": None, "total_steps": 2, "rng": rng})


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def train(model, input_ids, steps=2):
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=RATE, weight_decay=0.1)
    for _ in range(steps):
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logits(model, input_ids):
    with torch.no_grad():
        return model.eval()(input_ids=input_ids).logits


def trains_everything(model):
    return all(parameter.requires_grad for parameter in model.parameters())


def test_it_starts_as_the_base(adapter, base, model, input_ids):
    torch.testing.assert_close(logits(adapted(adapter, model), input_ids), logits(base, input_ids), atol=1e-4, rtol=0)


def test_it_leaves_the_base_bit_for_bit_or_trains_all_of_it(adapter, model, input_ids):
    before = {parameter: parameter.detach().clone() for parameter in model.parameters()}
    student = adapted(adapter, model)
    everything = trains_everything(student)
    assert everything or not any(parameter.requires_grad for parameter in before)
    train(student, input_ids)
    assert all(torch.equal(now, then) != everything for now, then in before.items())


def test_all_of_it_learns(adapter, model, input_ids):
    student = adapted(adapter, model)
    before = {name: parameter.detach().clone() for name, parameter in trainable(student).items()}
    train(student, input_ids)
    stuck = [name for name, parameter in trainable(student).items() if torch.equal(parameter, before[name])]
    assert before
    assert not stuck


def test_plain_peft_loads_what_it_saves(adapter, base, model, input_ids, tmp_path):
    from peft import PeftModel

    student = adapted(adapter, model)
    train(student, input_ids)
    if trains_everything(student):
        pytest.skip("neoplug itself saves a whole model")
    getattr(adapter, "save_adapter", lambda model, path: model.save_pretrained(path))(student, tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(logits(loaded, input_ids), logits(student, input_ids), atol=0, rtol=0)
    assert not torch.equal(logits(loaded, input_ids), logits(base, input_ids))


def test_the_seed_decides_the_start_and_nothing_else_is_drawn(adapter, base):
    state = torch.random.get_rng_state()
    first, again, other = (trainable(adapted(adapter, copy.deepcopy(base), seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    if not trains_everything(adapted(adapter, copy.deepcopy(base))):
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_gradient_checkpointing_changes_nothing(adapter, base, input_ids):
    gradients = []
    for checkpointing in (False, True):
        student = adapted(adapter, copy.deepcopy(base)).train()
        if checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": False})
        student(input_ids=input_ids, labels=input_ids, use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in trainable(student).items()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_it_stands_on_the_meta_device_for_a_plan(adapter, base):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(base.config).requires_grad_(False)
    planned, real = trainable(adapted(adapter, skeleton)), trainable(adapted(adapter, copy.deepcopy(base)))
    assert {name: p.shape for name, p in planned.items()} == {name: p.shape for name, p in real.items()}
    assert all(parameter.is_meta for parameter in planned.values())
