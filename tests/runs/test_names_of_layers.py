"""Messages about names of layers: the marked item, and advice that names only what the recipe and the model have."""

import pytest
import torch

from neoplug.errors import RecipeError
from neoplug.models.load import meta_model
from neoplug.recipe import load
from neoplug.runs.plan import plan
from neoplug.testing.families import configuration
from neoplug_adapters.loha import LoHa


@pytest.mark.parametrize(
    ("options", "marked", "words"),
    [
        ({"target_modules": ["q_proj", "k_porj", "v_proj"]}, "k_porj", "did you mean `k_proj`"),
        ({"target_modules": ["q_proj", "mlp"]}, "mlp", "name the layers in it: down_proj, gate_proj, up_proj"),
        ({"exclude_modules": ["q_proj", "mlp"]}, "mlp", "name the layers in it: down_proj, gate_proj, up_proj"),
        ({"exclude_modules": "mlp"}, "mlp", r"a text is a regex of the whole name; \[mlp\] is a list"),
        ({"target_modules": "q_proj"}, "q_proj", r"a text is a regex of the whole name; \[q_proj\] is a list"),
        ({"target_modules": ["q_proj", "norm"], "modules_to_save": ["norm"]}, "norm", "`norm` is named twice"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2, "down_proj": 4}}, "down_proj", "is not adapted"),
        ({"rank_pattern": {"q_proj": 2, "layers.0": 4}}, "layers.0", "names a module that holds layers"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0, 7]}, "7", "there is no layer 7"),
        ({"target_modules": ["q_proj", "input_layernorm"]}, "", r"name the layers to adapt, as target_modules: \[q_"),
    ],
)
def test_the_caret_stands_under_the_item_that_is_meant(lab, options, marked, words):
    checked = load(lab.recipe(adapter={"lora": options}))
    with pytest.raises(RecipeError, match=words) as caught, checked.marking():
        plan(checked, quick=True)
    (problem,) = caught.value.problems
    line, column = problem.mark.text, problem.mark.column - 1
    assert line[column : column + problem.mark.length].strip("'\"").startswith(marked)


def test_advice_names_layers_of_the_model():
    model = meta_model(configuration("gpt2"))
    with pytest.raises(RecipeError, match=r"target_modules: \[c_attn, c_fc, c_proj\]"):
        LoHa().add_adapter(model, None, 1, torch.Generator())
