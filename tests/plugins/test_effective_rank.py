"""Effective rank and intruder dimensions against numpy's decomposition of explicitly merged weights."""

import copy

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from neoplug.data.batch import Document, collate
from neoplug.errors import UsageError
from neoplug.registry import answered, build, find, installed
from neoplug.testing.families import random_model
from neoplug_probes.effective_rank import EffectiveRank, intruder_dimensions

# peft calls transformers by old names
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v(6|ersion):FutureWarning")

BATCHES = [
    collate([Document(np.arange(3, 60), np.ones(57, bool), 0)])
] * 4  # of adapters that are initialised from data
TARGETS = ["q_proj", "down_proj"]
NOTHING = {"effective_rank": None, "intruder_dimensions": None, "matrices": 0}


def trained(name, model, move=0.3, **options):
    """Return the model with an adapter, its trained weights moved by noise, and the plugin."""
    plugin = build(find(name, None).load(), options)
    arguments = {"model": model, "batches": BATCHES, "total_steps": 10, "rng": torch.Generator().manual_seed(1)}
    hook = answered(type(plugin))["add_adapter"]
    adapted = plugin.add_adapter(**{key: arguments[key] for key in hook.signature.parameters})
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(move * torch.randn(weight.shape, generator=rng))
    return adapted.eval(), plugin


def merged(adapted, plugin):
    """Return a plain copy with the adapter merged, by the plugin or by peft."""
    model = copy.deepcopy(adapted)
    if "merge_adapter" in answered(type(plugin)):
        return plugin.merge_adapter(model)
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def by_numpy(before, after, k=10, epsilon=0.5):
    """Return effective rank (Roy & Vetterli) and intruder dimensions (Shuttleworth et al., algorithm 1), by loops."""
    sizes = np.linalg.svd(after - before, compute_uv=False)
    shares = sizes[sizes > 1e-6 * np.linalg.norm(after)]
    shares = shares / shares.sum()
    olds, news = (np.linalg.svd(weight, full_matrices=False)[0].T for weight in (before, after))
    intruders = sum(all(abs(new @ old) < epsilon for old in olds) for new in news[:k])
    return np.exp(-(shares * np.log(shares)).sum()), intruders


def expected(base, model, **options):
    """Return the probe's numbers for the layers of TARGETS."""
    rows = []
    for name, layer in base.named_modules():
        if isinstance(layer, torch.nn.Linear | Conv1D) and name.startswith(("model.layers", "transformer.h")):
            pair = [each.get_submodule(name).weight.detach().double().numpy() for each in (base, model)]
            if not np.allclose(*pair, atol=1e-6):
                pair = [weight.T for weight in pair] if isinstance(layer, Conv1D) else pair
                rows.append(by_numpy(*pair, **options))
    ranks, intruders = zip(*rows, strict=True)
    return {"effective_rank": np.mean(ranks), "intruder_dimensions": np.mean(intruders), "matrices": len(rows)}


def loaded(family="llama", **options):
    """Return the probe of a loaded student, the student, and a copy of it as it was."""
    model, probe = random_model(family, seed=1), EffectiveRank(**options)
    probe.after_load(model, "student")
    return probe, model, copy.deepcopy(model)


def assert_measured(found, wanted):
    assert found["matrices"] == wanted["matrices"]
    assert found["effective_rank"] == pytest.approx(wanted["effective_rank"], rel=1e-3)
    assert found["intruder_dimensions"] == pytest.approx(wanted["intruder_dimensions"])


def adapters():
    """Yield the names of the built-in adapters."""
    for entry in installed():
        if entry.target.startswith("neoplug_adapters.") and "add_adapter" in answered(entry.load()):
            yield entry.name


@pytest.mark.parametrize("name", sorted(adapters()))
def test_of_every_adapter(name):
    probe, model, base = loaded()
    adapted, plugin = trained(name, model)
    state = {key: value.clone() for key, value in adapted.state_dict().items()}
    found = probe.on_evaluate(adapted)
    assert all(torch.equal(value, state[key]) for key, value in adapted.state_dict().items())
    if plugin.traits.cannot_merge or name == "ln_tuning":  # which changes no matrix
        assert found == NOTHING
    else:
        wanted = expected(base, merged(adapted, plugin))
        assert wanted["matrices"] == 14  # the head is none of them
        assert_measured(found, wanted)


def test_of_transposed_weights():
    """GPT-2's weights are [inputs, outputs]: singular vectors of the outputs are compared."""
    for name, options in (("lora", {"r": 2, "target_modules": ["c_attn", "c_fc"]}), ("full", {})):
        probe, model, base = loaded("gpt2", k=3, epsilon=0.7)
        adapted, plugin = trained(name, model, move=0.5, **options)
        wanted = expected(base, merged(adapted, plugin), k=3, epsilon=0.7)
        assert wanted["intruder_dimensions"] > 0
        assert_measured(probe.on_evaluate(adapted), wanted)


def test_of_a_base_in_16_bits():
    """The base's weights, and their rounding after they were loaded, are no change."""
    probe, model, _ = loaded()
    model.to(torch.bfloat16)
    adapted, plugin = trained("lora", model, r=4, target_modules=TARGETS)
    for weight in adapted.parameters():
        weight.data = weight.data.float() if weight.requires_grad else weight.data
    rounded, wide = copy.deepcopy(adapted).unload().float(), copy.deepcopy(adapted).float()
    assert_measured(probe.on_evaluate(adapted), expected(rounded, merged(wide, plugin)))


def test_of_a_base_in_4_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    random_model("llama", hidden_size=64, intermediate_size=64, num_key_value_heads=4, head_dim=16).save_pretrained(
        tmp_path
    )
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
    probe = EffectiveRank()
    probe.after_load(model, "student")
    assert probe.on_evaluate(model) == NOTHING
    adapted, _ = trained("lora", model, r=4, target_modules=TARGETS)
    plain = copy.deepcopy(adapted).unload().dequantize(torch.float32)
    after = copy.deepcopy(plain)
    for name, layer in adapted.named_modules():
        if hasattr(layer, "get_delta_weight"):
            after.get_submodule(name.removeprefix("base_model.model.")).weight.data += layer.get_delta_weight("default")
    wanted = expected(plain, after)
    assert wanted["matrices"] == 4
    assert_measured(probe.on_evaluate(adapted), wanted)


def test_an_adapter_that_no_matrix_represents_is_not_counted():
    class Bent(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, rows):
            return self.base(rows) + 0.1 * torch.tanh(self.base(rows))

    probe, model, _ = loaded()
    layer = model.model.layers[0].mlp
    layer.down_proj = Bent(layer.down_proj)
    assert probe.on_evaluate(model) == NOTHING
    model.model.layers[1].mlp.down_proj.weight.data += 0.1
    assert probe.on_evaluate(model)["matrices"] == 1


def test_before_training_and_of_the_teacher_there_is_no_value():
    probe, model, _ = loaded()
    teacher = random_model("llama", seed=2)  # layers of the same names
    probe.after_load(teacher, "teacher")
    assert probe.on_evaluate(model) == NOTHING
    assert probe.on_evaluate(teacher) == NOTHING
    adapted, _ = trained("lora", model, move=0.0)
    assert probe.on_evaluate(adapted) == NOTHING


def test_a_second_copy_of_the_student_changes_nothing():
    """The run loads its student again, to compare it with the saved one."""
    probe, model, base = loaded()
    adapted, plugin = trained("pissa", model, r=4, target_modules=TARGETS)
    probe.after_load(random_model("llama", seed=1), "student")
    assert_measured(probe.on_evaluate(adapted), expected(base, merged(adapted, plugin)))


def test_target_modules_select_by_the_ends_of_names():
    probe, model, base = loaded(target_modules=["q_proj", "layers.1.mlp.down_proj"])
    adapted, _ = trained("full", model, move=0.05)
    for name, layer in base.named_modules():
        if name.endswith(("k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "layers.0.mlp.down_proj")):
            layer.weight.data = model.get_submodule(name).weight.data  # not measured
    assert_measured(probe.on_evaluate(adapted), expected(base, adapted))
    with pytest.raises(UsageError, match=r"target_modules is \['qproj'\], which names no linear layer"):
        loaded(target_modules=["qproj"])


@pytest.mark.parametrize(("options", "message"), [({"k": 0}, r"^k is 0"), ({"epsilon": 1.0}, r"^epsilon is 1")])
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EffectiveRank(**options)


def test_known_ranks():
    """Equal singular values give the rank; one direction that is new to the matrix is one intruder."""
    probe, model, base = loaded(target_modules=["layers.0.self_attn.q_proj"], epsilon=0.6)
    weight = model.model.layers[0].self_attn.q_proj.weight
    left, _, right = torch.linalg.svd(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
    weight.data += 0.3 * left[:, :5] @ right[:5]
    assert probe.on_evaluate(model)["effective_rank"] == pytest.approx(5, rel=1e-3)
    diagonal = torch.diag(torch.arange(8.0, 0, -1, dtype=torch.float64))
    new = torch.ones(8, dtype=torch.float64) / 8**0.5  # its cosine with each singular vector is 0.35
    assert intruder_dimensions(diagonal, diagonal, 8, 0.5) == 0
    assert intruder_dimensions(diagonal, diagonal + 1e3 * torch.outer(new, new), 1, 0.5) == 1
    assert intruder_dimensions(diagonal, diagonal + 1e3 * torch.outer(new, new), 1, 0.3) == 0
    assert base is not model
