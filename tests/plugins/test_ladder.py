"""Ladder side-tuning against the formulas, written out in float64 on the hidden states of plain transformers."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from neoplug.errors import RecipeError
from neoplug.registry import build
from neoplug_adapters.ladder import LadderSideTuning

IDS = torch.arange(3, 43).view(2, 20)


@pytest.fixture(scope="module")
def base(tiny_student):
    return AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture
def student(base):
    """Return the student with a ladder of random weights."""
    adapted = LadderSideTuning(reduction_factor=6, gate_temperature=0.5).add_adapter(
        copy.deepcopy(base), torch.Generator().manual_seed(1)
    )
    rng = torch.Generator().manual_seed(2)
    for weight in adapted.ladder.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=rng)
    return adapted


def normalised(states):
    return states / (states.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()


def logits_by_hand(base, weights, layers, temperature):
    """Return the student's logits by the formulas of the module's docstring, in float64."""
    weights = {name: weight.double() for name, weight in weights.items()}
    with torch.no_grad():
        output = base.model(IDS, output_hidden_states=True)
    states = [normalised(each.double()) for each in output.hidden_states]
    side = states[0] @ weights["first"].T
    for number in range(layers):
        own = {name.split(".")[-1]: weight for name, weight in weights.items() if f"blocks.{number}." in name}
        share = 1 / (1 + (-own["gate"] / temperature).exp())
        mixed = share * (states[number + 1] @ own["down"].T) + (1 - share) * side
        inner = normalised(mixed) @ own["expand"].T
        side = mixed + (inner / (1 + (-inner).exp())) @ own["contract"].T
    return (output.last_hidden_state.double() + side @ weights["up"].T) @ base.lm_head.weight.double().T


def test_its_logits_are_those_of_the_formulas(base, student):
    expected = logits_by_hand(base, student.ladder.state_dict(), 2, 0.5)
    with torch.no_grad():
        found = student(IDS).logits
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)
    assert (found - base(IDS).logits).abs().max() > 1


def test_its_widths_are_those_of_the_model_divided(student):
    shapes = {name: list(weight.shape) for name, weight in student.ladder.named_parameters()}
    assert shapes == {
        "first": [8, 48],
        "up": [48, 8],
        **{f"blocks.{n}.{part}": shape for n in (0, 1) for part, shape in
           {"down": [8, 48], "gate": [1], "expand": [16, 8], "contract": [8, 16]}.items()},
    }  # fmt: skip


def test_no_gradient_passes_through_the_layers(student):
    """Not even where their inputs carry a graph: what is left is the gradient of the base's own states."""
    embeddings = student.get_input_embeddings()(IDS).requires_grad_(True)
    side = student.ladder(student.model(inputs_embeds=embeddings, output_hidden_states=True).hidden_states)
    side.square().sum().backward()
    assert embeddings.grad is None
    assert all(weight.grad.abs().max() > 0 for weight in student.ladder.parameters())


def test_the_layers_keep_no_activations_for_backward(base, student):
    """Autograd saves tensors for the side network alone, and none of the layers' wider inner states."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.shape) or each, lambda each: each):
        student(IDS).logits.sum()
    inner = base.config.intermediate_size
    assert kept
    assert not [shape for shape in kept if shape[-1] == inner]


def test_generation_with_a_cache_is_that_without(student):
    arguments = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    found = [student.generate(input_ids=IDS, use_cache=cached, **arguments) for cached in (True, False)]
    assert torch.equal(*found)


def test_its_folder_is_enough_to_load_it(base, student, tmp_path):
    """Options are those of the folder, whatever those of the plugin that loads it."""
    LadderSideTuning(reduction_factor=6, gate_temperature=0.5).save_adapter(student, tmp_path)
    assert json.loads((tmp_path / "ladder.json").read_text()) == {"reduction_factor": 6, "gate_temperature": 0.5}
    loaded = LadderSideTuning().load_adapter(copy.deepcopy(base), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, student(IDS).logits)
    stored = load_file(tmp_path / "ladder.safetensors")
    torch.testing.assert_close(logits_by_hand(base, stored, 2, 0.5).float(), student(IDS).logits, rtol=1e-4, atol=1e-3)
    assert {weight.dtype for weight in stored.values()} == {torch.float32}


@pytest.mark.parametrize("options", [{"reduction_factor": 0}, {"gate_temperature": 0}, {"gate_temperature": -1.0}])
def test_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(RecipeError, match=name):
        build(LadderSideTuning, options)
