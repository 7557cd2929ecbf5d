"""LoRA-XS against the formula in float64, with factors by numpy."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from neoplug.errors import RecipeError
from neoplug.registry import build
from neoplug.testing.families import random_model
from neoplug_adapters.lora_xs import Adapted, LoRAXS

IDS = torch.arange(3, 43).view(2, 20)


@pytest.fixture(scope="module", params=["llama", "gpt2"])  # linear layers, and layers with transposed weights
def base(request):
    return random_model(request.param, seed=1)


@pytest.fixture
def student(base):
    """Return the student with R far from its start."""
    adapted = LoRAXS(r=3, lora_alpha=6.0).add_adapter(copy.deepcopy(base), torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(2)
    for layer in wrapped(adapted).values():
        layer.R.data += torch.randn(layer.R.shape, generator=rng)
    return adapted


def wrapped(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Adapted)}


def test_the_change_is_that_of_the_formula(base, student):
    merged = LoRAXS().merge_adapter(copy.deepcopy(student))
    assert not wrapped(merged)
    for name, layer in wrapped(student).items():
        own = base.get_submodule(name)
        turn = np.transpose if isinstance(own, Conv1D) else np.asarray
        weight = turn(own.weight.detach().double().numpy())
        left, values, right = np.linalg.svd(weight, full_matrices=False)
        expected = turn(merged.get_submodule(name).weight.detach().double().numpy()) - weight
        found = layer.A.double().numpy() @ layer.R.detach().double().numpy() @ layer.B.double().numpy() * 2
        np.testing.assert_allclose(found, expected, atol=1e-5)
        # The factors span the largest components, whatever the signs of the vectors.
        np.testing.assert_allclose(layer.A.numpy() @ layer.B.numpy(), (left[:, :3] * values[:3]) @ right[:3], atol=1e-5)
        np.testing.assert_allclose(layer.B.numpy() @ layer.B.numpy().T, np.eye(3), atol=1e-5)


def test_its_size_is_the_square_of_the_rank_for_each_target(base, student):
    sizes = [weight.numel() for weight in student.parameters() if weight.requires_grad and weight.shape == (3, 3)]
    head = base.get_output_embeddings()
    linear = [layer for layer in base.modules() if isinstance(layer, torch.nn.Linear | Conv1D) and layer is not head]
    assert sizes == [9] * len(linear)
    assert not isinstance(student.get_output_embeddings(), Adapted)


def test_its_folder_is_enough_to_load_it(base, student, tmp_path):
    """Options are those of the folder, and the factors are not computed again."""
    LoRAXS(r=3, lora_alpha=6.0).save_adapter(student, tmp_path)
    options = {"target_modules": "all-linear", "r": 3, "lora_alpha": 6.0}
    assert json.loads((tmp_path / "lora_xs.json").read_text()) == options
    loaded = LoRAXS().load_adapter(copy.deepcopy(base), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, student(IDS).logits)


def test_a_rank_above_a_size_of_the_weight_is_that_size(base):
    adapted = LoRAXS(r=1000).add_adapter(copy.deepcopy(base), torch.Generator())
    for layer in wrapped(adapted).values():
        assert len(layer.R) == min(layer.base.weight.shape)


def test_targets_are_chosen_by_the_ends_of_names(base):
    name = "c_proj" if hasattr(base, "transformer") else "down_proj"
    adapted = LoRAXS(target_modules=[name]).add_adapter(copy.deepcopy(base), torch.Generator())
    assert wrapped(adapted)
    assert all(each.endswith(name) for each in wrapped(adapted))
    with pytest.raises(RecipeError, match="down_prj"):
        LoRAXS(target_modules=["down_prj"]).add_adapter(copy.deepcopy(base), torch.Generator())


@pytest.mark.parametrize("options", [{"r": 0}, {"lora_alpha": 0.0}, {"lora_alpha": float("inf")}])
def test_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(RecipeError, match=name):
        build(LoRAXS, options)
