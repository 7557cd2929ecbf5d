"""Plans from shipped facts: sizes against the published ones, FLOPs against closed formulas."""

import json

import pytest

from neoplug import recipe as recipes
from neoplug.models.facts import configured, known_models
from neoplug.models.load import load_meta_model
from neoplug.recipe.source import shipped

# Billions of parameters and LoRA parameters per rank on all linear layers, as published or by their shapes.
SIZES = {
    "meta-llama/Llama-2-7b-hf": (6.738, 2_498_560),
    "TinyLlama/TinyLlama_v1.1": (1.100, 788_480),
    "meta-llama/Llama-3.1-8B": (8.030, 2_621_440),
    "meta-llama/Llama-3.2-1B": (1.236, 704_512),
    "meta-llama/Llama-3.2-3B": (3.213, 1_519_616),
    "nvidia/Llama-3.1-Minitron-4B-Width-Base": (4.513, 1_900_544),
    "nvidia/Llama-3.1-Minitron-4B-Depth-Base": (4.540, 1_310_720),
    "Qwen/Qwen2.5-0.5B": (0.494, 549_888),
    "Qwen/Qwen2.5-1.5B": (1.544, 1_154_048),
    "Qwen/Qwen2.5-3B": (3.086, 1_870_848),
    "Qwen/Qwen2.5-7B": (7.615, 2_523_136),
    "Qwen/Qwen3-0.6B": (0.596, 630_784),
    "Qwen/Qwen3-1.7B": (1.720, 1_089_536),
    "Qwen/Qwen3-4B": (4.022, 2_064_384),
    "Qwen/Qwen3-8B": (8.190, 2_727_936),
    "HuggingFaceTB/SmolLM2-135M": (0.134, 305_280),
    "HuggingFaceTB/SmolLM2-360M": (0.362, 542_720),
    "HuggingFaceTB/SmolLM2-1.7B": (1.711, 1_130_496),
    "google/gemma-2-2b": (2.614, 1_297_920),
    "google/gemma-2-9b": (9.241, 3_376_128),
    "google/gemma-3-1b-pt": (1.000, 815_360),
}

# Parameters, norms and biases included, as KerasHub and others count them in the released models.
PARAMETERS = {
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-xl": 1_557_611_200,
    "openlm-research/open_llama_3b_v2": 3_426_473_600,
    "openlm-research/open_llama_7b_v2": 6_738_415_616,
    "huggyllama/llama-7b": 6_738_415_616,
    "huggyllama/llama-13b": 13_015_864_320,
    "meta-llama/Llama-2-13b-chat-hf": 13_015_864_320,
    "Qwen/Qwen2-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
}


@pytest.fixture
def planned(neoplug):
    """Return a function that plans a published recipe offline."""

    def plan(name, *overrides):
        answer = neoplug("plan", f"published/{name}", "--offline", "--json", *overrides)
        assert answer.code == 0, answer.err
        return json.loads(answer.out)

    return plan


def matrices(config):
    """Return the sizes of a layer's seven matrices, as (rows, columns)."""
    hidden, mlp, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    dim = config.get("head_dim", hidden // heads)
    query, key = heads * dim, config["num_key_value_heads"] * dim
    return [(query, hidden), (key, hidden), (key, hidden), (hidden, query), (mlp, hidden), (mlp, hidden), (hidden, mlp)]


@pytest.mark.parametrize("name", SIZES)
def test_the_facts_give_the_published_numbers_of_parameters(name):
    config = known_models()[name].config
    layers, vocabulary = config["num_hidden_layers"], config["vocab_size"] * config["hidden_size"]
    sizes = matrices(config)
    total = layers * sum(rows * columns for rows, columns in sizes) + vocabulary * (2 - config["tie_word_embeddings"])
    assert total / 1e9 == pytest.approx(SIZES[name][0], abs=1e-3)
    assert layers * sum(rows + columns for rows, columns in sizes) == SIZES[name][1]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_configuration_has_as_many_parameters_as_the_released_model(name):
    with configured(name, ()) as model:
        assert sum(weight.numel() for weight in load_meta_model(model, "student").parameters()) == PARAMETERS[name]


def test_every_model_of_the_facts_is_compared():
    assert {id(facts.config) for facts in known_models().values()} == {
        id(known_models()[name].config) for name in SIZES | PARAMETERS
    }


def test_the_models_of_every_published_recipe_have_facts():
    published = [recipes.load(name).recipe for name in shipped() if name.startswith("published/")]
    models = {role.model for recipe in published for role in (recipe.student, recipe.teacher) if role}
    assert models <= known_models().keys()


def test_an_offline_plan_has_parameters_and_memory_of_the_real_pair(planned):
    """Llama-3.1-8B teaches Llama-3.2-1B: 16.06 and 2.47 GB in bfloat16, and LoRA of rank 64 on all linear layers."""
    found = planned("llm_neo/neo")
    assert found["parameters"]["trainable"] == 64 * 704_512
    assert found["models"]["teacher"]["bytes"] / 1e9 == pytest.approx(16.06, abs=0.01)
    assert found["models"]["student"]["bytes"] / 1e9 == pytest.approx(2.47, abs=0.01)
    assert found["models"]["teacher"]["vocabulary"] == found["models"]["student"]["vocabulary"] == 128_256
    assert found["memory_bytes"]["optimizer"] == pytest.approx(8 * 64 * 704_512, rel=1e-4)
    assert found["tokens_per_step"] == 8 * 2048
    assert found["steps"] is None


def test_flops_are_two_for_each_weight_and_token_and_four_for_each_pair_of_positions(planned):
    """Forward: 2 P n and 4 n^2 (heads dim) a layer; backward of frozen weights once, of trained ones twice as much."""
    length, rows, r = 128, 8, 64
    found = planned("llm_neo/neo", f"data.max_length={length}")["flops_per_step"]

    def forward(name):
        config = known_models()[name].config
        weights = sum(a * b for a, b in matrices(config)) * config["num_hidden_layers"]
        width = config["num_attention_heads"] * config["head_dim"]
        attention = 4 * length**2 * width * config["num_hidden_layers"]
        return 2 * (weights + config["vocab_size"] * config["hidden_size"]) * length + attention, attention

    teacher, _ = forward("meta-llama/Llama-3.1-8B")
    assert found["teacher"] == pytest.approx(rows * teacher, rel=1e-3)
    student, attention = forward("meta-llama/Llama-3.2-1B")
    lora = 2 * r * SIZES["meta-llama/Llama-3.2-1B"][1] * length
    expected = 2 * (student - attention) + 3 * lora + 3.5 * attention
    assert found["student"] == pytest.approx(rows * expected, rel=0.02)


def test_flops_of_a_mixture_of_experts_count_the_experts_that_a_token_takes(planned):
    length, rows = 128, 8
    config = known_models()["Qwen/Qwen3-235B-A22B"].config
    hidden, width = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    attention = 2 * hidden * width + 2 * hidden * config["num_key_value_heads"] * config["head_dim"]
    experts = config["num_experts_per_tok"] * 3 * hidden * config["moe_intermediate_size"]
    layer = 2 * (attention + experts + hidden * config["num_experts"]) * length + 4 * length**2 * width
    expected = config["num_hidden_layers"] * layer + 2 * config["vocab_size"] * hidden * length
    found = planned("distillkit/offline", f"data.max_length={length}", "student.model=Qwen/Qwen3-0.6B")
    assert found["flops_per_step"]["teacher"] == pytest.approx(rows * expected, rel=1e-3)


def test_a_model_without_facts_is_an_error(neoplug, tmp_path):
    recipe = tmp_path / "opt.yaml"
    recipe.write_text("extends: published/minillm/kd_gpt2_120m\nstudent:\n  model: facebook/opt-1.3b\n")
    answer = neoplug("plan", str(recipe), "--offline")
    assert answer.code == 2
    assert "no facts about `facebook/opt-1.3b` are shipped" in answer.err
    assert "opt.yaml:3:10" in answer.err


def test_an_offline_plan_is_printed(neoplug):
    answer = neoplug("plan", "published/minitron/width", "--offline", "data.max_length=128")
    assert answer.code == 0, answer.err
    for words in ("9,961 steps", "TFLOPs a step", "teacher weights", "trainable: 4,512,"):
        assert words in answer.out
    assert neoplug("plan", "published/minitron/width", "--offline", "--match", "parameters=5").code == 2
