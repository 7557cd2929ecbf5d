"""Other adapters of peft: number of parameters by formula, defaults that fit the model's sizes, refusals."""

import copy
import logging
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import PeftModel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from neoplug.data.batch import Document, collate
from neoplug.errors import RecipeError, UsageError
from neoplug.registry import find
from neoplug_adapters.adalora import AdaLoRA
from neoplug_adapters.adamss import AdaMSS
from neoplug_adapters.adaption_prompt import AdaptionPrompt
from neoplug_adapters.beft import BEFT
from neoplug_adapters.boft import BOFT
from neoplug_adapters.c3a import C3A
from neoplug_adapters.corda import CorDA
from neoplug_adapters.eva import EVA
from neoplug_adapters.loftq import LoftQ
from neoplug_adapters.lora import LoRA
from neoplug_adapters.lora_ga import LoRAGA
from neoplug_adapters.moslora import MoSLoRA
from neoplug_adapters.oft import OFT
from neoplug_adapters.road import RoAd
from neoplug_adapters.supertuning import SuperTuning

# peft calls transformers by old names
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")
N, M = 48, 96  # of up_proj: inputs, outputs
SIZES = {
    "adalora": lambda c: c.init_r * (N + M + 1),
    "adamss": lambda c: c.subspace_rank * (c.num_subspaces * min(c.r, N) + M),
    "beft": lambda c: M,
    "boft": lambda c: N * c.boft_block_size + M,
    "c3a": lambda c: N * M // c.block_size,
    "deft": lambda c: c.r * (N + M),
    "delora": lambda c: c.r * (N + M) + 1,
    "dora": lambda c: c.r * (N + M) + M,
    "fourierft": lambda c: c.n_frequency,
    "glora": lambda c: 2 * c.r * (N + M),
    "gralora": lambda c: c.r * (N + M),
    "hira": lambda c: c.r * (N + M),
    "hra": lambda c: c.r * N,
    "ia3": lambda c: M,
    "lily": lambda c: c.r * N + c.num_B * c.r + c.num_B * c.r * M,
    "loha": lambda c: 2 * c.r * (N + M),
    "lokr": lambda c: 8 * 6 + 12 * 8,
    "loftq": lambda c: c.r * (N + M),
    "lora": lambda c: c.r * (N + M),
    "lora_fa": lambda c: c.r * M,
    "mica": lambda c: c.r * N,
    "moslora": lambda c: c.r * (N + M) + c.r**2,
    "miss": lambda c: c.r * M,
    "oft": lambda c: N * (c.oft_block_size - 1) // 2,
    "osf": lambda c: (N - N // 2) * (N + M + 1),
    "peanut": lambda c: 2 * c.r * M + 2 * c.depth * c.r**2,
    "psoft": lambda c: c.r * (c.r - 1) // 2 + 2 * c.r,
    "pvera": lambda c: M + 2 * c.r,
    "randlora": lambda c: ceil(N / c.r) * (c.r + N),
    "road": lambda c: M,
    "shira": lambda c: c.r * (N + M),
    "supertuning": lambda c: int(N * M * (1 - c.sparsity)),
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
    return adapter.add_adapter(skeleton(), None, 4, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SIZES)
def test_the_number_of_parameters_is_the_formula(name, tmp_path):
    model = adapted(find(name, tmp_path).load()(target_modules=["up_proj"]))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == SIZES[name](model.peft_config["default"])


def test_a_default_that_is_fitted_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="neoplug"):
        adapted(C3A())
    assert "c3a: block_size is 24, not 256: fitted to the sizes of the targets" in caplog.text
    assert "experts" not in caplog.text  # the three-dimensional blocks of C3A do not count as experts


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (C3A(block_size=32), "block_size is 32, which does not divide all sizes of the targets"),
        (OFT(oft_block_size=5), "oft_block_size is 5, which does not divide"),
        (BOFT(boft_block_size=5), "boft_block_size is 5, which does not divide"),
        (BOFT(boft_block_num=7), "boft_block_num is 7, which does not divide"),
        (RoAd(group_size=3), "group_size is 3, which does not divide"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_by_name(adapter, words):
    with pytest.raises(RecipeError, match=words) as caught:
        adapted(adapter)
    (problem,) = caught.value.problems
    assert problem.path == ("adapter", adapter.name, words.split()[0])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("boft", {"boft_block_size": 4, "boft_block_num": 12}, r"^boft_block_size and boft_block_num are both given"),
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


def real(seed=0, **options):
    torch.manual_seed(seed)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2} | options
    sizes = {"vocab_size": 64, "hidden_size": N, "intermediate_size": M, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval().requires_grad_(False)


def some_batches():
    scored = np.array([False] * 4 + [True] * 8)
    rng = np.random.default_rng(0)
    return [collate([Document(rng.integers(0, 64, 12), scored, row) for row in range(4)]) for _ in range(8)]


def test_adaloras_ranks_end_at_the_target_and_its_penalty_is_that_of_the_paper():
    adapter, model = AdaLoRA(target_r=2, init_r=4, target_modules=["q_proj", "up_proj"]), real()
    student = adapter.add_adapter(model, None, 8, torch.Generator().manual_seed(0))
    matrices = {name: weight for name, weight in student.named_parameters() if ".lora_A." in name or ".lora_B." in name}
    rows = [weight.T.double() if ".lora_B." in name else weight.double() for name, weight in matrices.items()]
    distances = [torch.linalg.matrix_norm(row @ row.T - torch.eye(4).double()) for row in rows]
    assert adapter.penalty(student).item() == pytest.approx(0.5 * sum(distances).item() / len(rows), rel=1e-5)
    optimizer = torch.optim.AdamW([weight for weight in student.parameters() if weight.requires_grad], lr=1e-2)
    for step in range(1, 9):
        ids = torch.arange(20)[None] * step % 64
        student(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        adapter.on_step_end(step, student)
        optimizer.zero_grad()
    kept = [weight.ne(0).sum().item() for name, weight in student.named_parameters() if ".lora_E." in name]
    assert sum(kept) == 2 * 2


def test_evas_directions_are_the_principal_ones_of_the_layers_inputs():
    batches, model, seen = some_batches(), real(), []
    handle = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    for batch in batches:
        for ids in batch.input_ids.split(batch.lengths):
            model(input_ids=ids[None])
    handle.remove()
    student = EVA(r=4).add_adapter(model, iter(batches), 4, torch.Generator().manual_seed(0))
    a = student.get_submodule("base_model.model.model.layers.0.mlp.down_proj.lora_A.default").weight.double()
    _, _, directions = np.linalg.svd(torch.cat(seen).double().numpy(), full_matrices=False)
    assert torch.allclose((a @ torch.from_numpy(directions[:4]).T).abs(), torch.eye(4).double(), atol=1e-3)


@pytest.mark.parametrize("name", ["pissa", "olora", "milora", "corda", "lora_ga", "eva", "loftq"])
def test_the_rank_fits_layers_with_fewer_components(name, tmp_path, caplog):
    """Keys and values have 4 outputs: rank 4 there, with the scale of other targets; plain peft loads the result."""
    narrow = {"num_key_value_heads": 1, "head_dim": 4}
    model, adapter = real(**narrow), find(name, tmp_path).load()()
    with caplog.at_level(logging.INFO, logger="neoplug"):
        student = adapter.add_adapter(model, iter(some_batches()), 4, torch.Generator().manual_seed(0)).eval()
    assert f"{name}: r is not 8 where a target has fewer components: k_proj (4), v_proj (4)" in caplog.text
    layer = student.get_submodule("base_model.model.model.layers.0.self_attn.k_proj")
    assert (layer.r["default"], layer.scaling["default"]) == (4, 2)
    assert student.get_submodule("base_model.model.model.layers.0.mlp.up_proj").r["default"] == 8
    ids = torch.arange(20)[None]
    with torch.no_grad():
        if name == "loftq":  # with all components the weight is exact; another test covers how it is saved
            whole = layer.get_base_layer().weight + layer.get_delta_weight("default")
            torch.testing.assert_close(whole, real(**narrow).model.layers[0].self_attn.k_proj.weight)
            return
        torch.testing.assert_close(student(ids).logits, real(**narrow)(ids).logits, rtol=1e-3, atol=1e-3)
        for weight in student.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
        getattr(adapter, "save_adapter", lambda model, path: model.save_pretrained(path))(model=student, path=tmp_path)
        loaded = PeftModel.from_pretrained(real(**narrow), tmp_path).eval()
        torch.testing.assert_close(loaded(ids).logits, student(ids).logits, rtol=1e-3, atol=1e-3)


def test_lora_gas_first_step_is_along_the_gradient_of_the_answers():
    batches, model = some_batches(), real()
    student = LoRAGA(r=4, target_modules=["down_proj"]).add_adapter(
        copy.deepcopy(model), iter(batches), 4, torch.Generator().manual_seed(0)
    )
    weight = model.model.layers[0].mlp.down_proj.weight.requires_grad_()
    for batch in batches:
        for ids in batch.input_ids.split(batch.lengths):
            labels = torch.where(torch.arange(12) >= 4, ids, -100)[None]
            model(input_ids=ids[None], labels=labels).loss.backward()
    left, _, right = np.linalg.svd(weight.grad.double().numpy(), full_matrices=False)
    layer = student.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    unit = N**0.25 / 16**0.5 * torch.eye(4).double()
    assert torch.allclose((a @ torch.from_numpy(right[:4]).T).abs(), unit, atol=1e-3)
    assert torch.allclose((b.T @ torch.from_numpy(left[:, 4:8].copy())).abs(), unit, atol=1e-3)


@pytest.mark.parametrize(("method", "kept"), [("ipm", slice(0, 4)), ("kpm", slice(-4, None))])
def test_cordas_start_has_the_components_of_the_weight_times_the_covariance(method, kept):
    batches, model, seen = some_batches(), real(), []
    layer = model.model.layers[0].mlp.gate_proj
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    for batch in batches:
        for ids in batch.input_ids.split(batch.lengths):
            model(input_ids=ids[None])
    handle.remove()
    states, weight = torch.cat(seen).double(), layer.weight.double().clone()
    covariance = states.T @ states / len(states)
    covariance += 0.01 * covariance.diagonal().mean() * torch.eye(N)
    left, values, right = np.linalg.svd((weight @ covariance).numpy(), full_matrices=False)
    part = (left[:, kept] * values[kept]) @ right[kept] @ np.linalg.inv(covariance.numpy())
    adapter = CorDA(r=4, corda_method=method, target_modules=["gate_proj"])
    student = adapter.add_adapter(model, iter(batches), 4, torch.Generator().manual_seed(0))
    moved = student.get_submodule("base_model.model.model.layers.0.mlp.gate_proj.base_layer").weight.double()
    np.testing.assert_allclose((weight - moved).numpy(), part, atol=1e-4)


def test_without_scikit_learn_adamss_names_its_extra(monkeypatch):
    monkeypatch.setattr("neoplug_adapters.adamss.find_spec", lambda _: None)
    (problem,) = AdaMSS().check(SimpleNamespace(adapter={"adamss": {}}, student=SimpleNamespace(load={})))
    assert problem.fix == "pip install 'neoplug[adamss]'"
    assert problem.path == ("adapter", "adamss")


@pytest.mark.slow
def test_adamss_equals_the_lora_that_it_saves_also_with_biases(tmp_path):
    base = real(attention_bias=True)
    for name, weight in base.named_parameters():
        weight.data += 0.5 if name.endswith("bias") else 0
    student = AdaMSS(r=16, subspace_rank=2).add_adapter(copy.deepcopy(base), None, 4, torch.Generator().manual_seed(0))
    for name, weight in student.named_parameters():
        weight.data += 0.1 * torch.randn_like(weight) if ".adamss_B." in name else 0
    AdaMSS().save_adapter(student, tmp_path)
    ids = torch.arange(20)[None]
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert loaded.peft_config["default"].r == 10
    torch.testing.assert_close(loaded(input_ids=ids).logits, student(input_ids=ids).logits, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        student.merge_and_unload(True)(input_ids=ids).logits, loaded(input_ids=ids).logits, atol=1e-3, rtol=0
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="peft may find its extension")
def test_boft_with_several_factors_needs_the_extension_of_peft():
    with pytest.raises(RecipeError, match="boft_n_butterfly_factor is 2, but peft can compute only 1 here"):
        adapted(BOFT(boft_n_butterfly_factor=2))


def test_boft_is_its_formula():
    student = BOFT(target_modules=["up_proj"]).add_adapter(real(), None, 4, torch.Generator().manual_seed(0))
    layer, states = student.get_submodule("base_model.model.model.layers.0.mlp.up_proj"), torch.randn(3, N)
    blocks, scale = torch.nn.init.normal_(layer.boft_R["default"]), torch.nn.init.normal_(layer.boft_s["default"])
    skew, unit = (blocks[0] - blocks[0].mT).double().detach().numpy() / 2, np.eye(4)
    turn = np.zeros((N, N))
    for number, q in enumerate(skew):
        here = slice(4 * number, 4 * number + 4)
        turn[here, here] = (unit - q) @ np.linalg.inv(unit + q)
    weight = scale.double().detach().numpy() * layer.base_layer.weight.double().numpy() @ turn.T
    np.testing.assert_allclose(layer(states).detach().numpy(), states.double().numpy() @ weight.T, atol=1e-4)


@pytest.mark.parametrize("rounds", [1, 3])
def test_loftq_starts_with_the_best_low_rank_part_of_the_error_of_four_bits(rounds):
    model = real()
    whole = model.model.layers[0].mlp.up_proj.weight.double().numpy()
    adapter = LoftQ(r=4, lora_alpha=12, loftq_iter=rounds, target_modules=["up_proj"])
    student = adapter.add_adapter(model, None, 4, torch.Generator().manual_seed(0))
    layer = student.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    rounded, rest = layer.base_layer.weight, np.zeros_like(whole)
    again = dequantize_4bit(*quantize_4bit(rounded, quant_type="nf4", blocksize=64))
    torch.testing.assert_close(again, rounded.data, atol=1e-6, rtol=1e-6)  # so `load: nf4` keeps it
    for _ in range(rounds):
        grid = torch.from_numpy(whole - rest).float()
        kept = dequantize_4bit(*quantize_4bit(grid, quant_type="nf4", blocksize=64)).double().numpy()
        left, values, right = np.linalg.svd(whole - kept, full_matrices=False)
        rest = left[:, :4] * values[:4] @ right[:4]
    change = 3 * layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    np.testing.assert_allclose(rounded.double().numpy(), kept, atol=1e-5)
    np.testing.assert_allclose(change.detach().numpy(), rest, atol=1e-4)


def test_loftq_in_eight_bits_is_off_by_half_a_step_at_most():
    model = real()
    whole = model.model.layers[0].mlp.up_proj.weight.clone()
    adapter = LoftQ(loftq_bits=8, target_modules=["up_proj"])
    student = adapter.add_adapter(model, None, 4, torch.Generator().manual_seed(0))
    rounded = student.get_submodule("base_model.model.model.layers.0.mlp.up_proj").base_layer.weight
    assert ((rounded - whole).abs() <= whole.abs().amax(1, keepdim=True) / 254 * 1.001).all()
    assert all(len(row.unique()) <= 255 for row in rounded)


def test_loftq_does_not_continue_from_an_adapter():
    student = SimpleNamespace(load={}, adapter_path="runs/before/adapter")
    (problem,) = LoftQ().check(SimpleNamespace(adapter={"loftq": {}}, student=student))
    assert problem.path == ("student", "adapter_path")


def test_beft_is_merged_only_into_biases():
    for layers in (["q_proj"], ["q_proj", "up_proj"]):
        adapter = BEFT(target_modules=layers)
        student = adapter.add_adapter(real(attention_bias=True), None, 4, torch.Generator().manual_seed(0))
        for name, weight in student.named_parameters():
            weight.data += 0.3 if ".beft_" in name else 0
        ids = torch.arange(20)[None]
        wanted = student(input_ids=ids).logits
        if layers == ["q_proj"]:
            torch.testing.assert_close(adapter.merge_adapter(student)(input_ids=ids).logits, wanted)
            continue
        with pytest.raises(UsageError, match="the model has no biases in these layers"):
            adapter.merge_adapter(student)


def test_moslora_is_its_formula_and_its_identity_control_is_lora():
    student = MoSLoRA(r=4, target_modules=["up_proj"]).add_adapter(real(), None, 4, torch.Generator().manual_seed(0))
    layer = student.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    mixed, states = layer.lora_A["default"], torch.randn(3, N)
    change = 4 * layer.lora_B["default"].weight @ mixed.mixer.weight @ mixed.down.weight
    torch.testing.assert_close(layer(states), layer.base_layer(states) + states @ change.T, atol=1e-4, rtol=1e-4)
    frozen, identity = (
        MoSLoRA(r=4, mixer=mixer).add_adapter(real(), None, 4, torch.Generator().manual_seed(0))
        for mixer in ("frozen", "identity")
    )
    plain = LoRA(r=4).add_adapter(real(), None, 4, torch.Generator().manual_seed(0))
    count = sum(weight.numel() for weight in plain.parameters() if weight.requires_grad)
    for control in (frozen, identity):
        assert sum(weight.numel() for weight in control.parameters() if weight.requires_grad) == count
    for name, module in plain.named_modules():
        if name.endswith("lora_A.default"):
            assert torch.equal(identity.get_submodule(name).weight, module.weight)


def prompted(model):
    return AdaptionPrompt(adapter_len=3).add_adapter(model, torch.Generator().manual_seed(0))


def test_adaption_prompts_add_to_the_attention_of_the_layer():
    student, states = prompted(real()), torch.randn(1, 5, N)
    attention = student.get_submodule("base_model.model.model.layers.0.self_attn")
    attention.adaption_gate.data.fill_(0.7)
    angles = student.get_base_model().model.rotary_emb(states, torch.arange(5)[None])
    with torch.no_grad():
        found = attention(hidden_states=states, position_embeddings=angles, attention_mask=None)[0]
        bare = attention.model(hidden_states=states, position_embeddings=angles, attention_mask=None)[0]
        q, k, v = (
            getattr(attention.model, f"{name}_proj")(given).unflatten(-1, (-1, 12)).transpose(1, 2)
            for name, given in (("q", states), ("k", attention.adaption_prompt), ("v", attention.adaption_prompt))
        )
        q, _ = apply_rotary_pos_emb(q, q, *angles)
        k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)  # 4 heads share 2
        seen = 0.7 * torch.softmax(q @ k.mT / 12**0.5, -1) @ v
        added = attention.model.o_proj(seen.transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, bare + added, atol=1e-5, rtol=1e-5)


def test_adaption_prompts_refuse_what_peft_computes_wrongly():
    with pytest.raises(RecipeError, match="4 heads of size 8, but peft computes 48 / 4"):
        prompted(real(head_dim=8))
    with pytest.raises(RecipeError, match="Unsupported model type"):
        prompted(
            Qwen2ForCausalLM(
                Qwen2Config(
                    vocab_size=64,
                    hidden_size=N,
                    intermediate_size=M,
                    num_hidden_layers=1,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                )
            )
        )


@pytest.fixture(scope="module")
def experts():
    """Return a model with stacked experts and gates with one output, of a family that the matrix does not have."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    counts = {"num_experts": 16, "num_experts_per_tok": 2, "num_key_value_heads": 2, "vocab_size": 64}
    config = Qwen2MoeConfig(**sizes, **counts, moe_intermediate_size=24, shared_expert_intermediate_size=24)
    return Qwen2MoeForCausalLM(config).requires_grad_(False)


@pytest.mark.parametrize("name", [*SIZES, "milora", "olora", "pissa"])
def test_a_gate_of_one_output_is_left_out_of_all_linear(experts, name, caplog):
    caplog.set_level(logging.INFO, "neoplug")
    if name == "adaption_prompt":
        return
    model = copy.deepcopy(experts).to("meta")
    adapted = find(name, Path()).load()().add_adapter(model, None, 100, torch.Generator().manual_seed(0))
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert trained
    assert not [name for name in trained if "shared_expert_gate" in name]
    assert "all-linear leaves out mlp.shared_expert_gate, which have one output" in caplog.text


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "name", ["corda", "dora", "eva", "loftq", "lora_ga", "mica", "milora", "moslora", "olora", "pissa"]
)
def test_stacked_experts_are_refused_in_a_family_that_was_not_measured(name, device):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = OlmoeForCausalLM(OlmoeConfig(**sizes, num_key_value_heads=2, num_experts=16, vocab_size=64)).to(device)
    with pytest.raises(RecipeError, match=f"`{name}` cannot adapt the experts of this model") as caught:
        find(name, Path()).load()().add_adapter(model, None, 4, torch.Generator().manual_seed(0))
    assert "target_modules: [k_proj, o_proj, q_proj, v_proj]" in str(caught.value)


@pytest.fixture
def llama():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64, tie_word_embeddings=True))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["corda", "loftq", "lora_ga", "milora", "olora", "pissa"])
def test_a_head_that_shares_its_weight_is_refused(llama, name, device):
    adapter = find(name, Path()).load()(target_modules=["q_proj", "lm_head"])
    model = llama.to(device)
    model.tie_weights()
    with pytest.raises(RecipeError, match=f"`{name}` cannot adapt the head of this model"):
        adapter.add_adapter(model, None, 4, torch.Generator().manual_seed(0))


def test_gralora_takes_one_block_where_two_do_not_divide():
    sizes = {"hidden_size": 32, "intermediate_size": 49, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64))
    adapted = find("gralora", Path()).load()().add_adapter(model, None, 1, torch.Generator().manual_seed(0))
    assert adapted.peft_config["default"].gralora_k == 1
    with pytest.raises(RecipeError, match="gralora_k is 2, which does not divide all sizes"):
        find("gralora", Path()).load()(gralora_k=2).add_adapter(model, None, 1, torch.Generator().manual_seed(0))


def test_an_option_that_peft_refuses_is_named(llama):
    with pytest.raises(RecipeError, match="peft does not take this sparsity") as caught:
        SuperTuning(sparsity=1 - 1e-9).add_adapter(llama, None, 1, torch.Generator())
    assert caught.value.problems[0].path == ("adapter", "supertuning", "sparsity")


def test_a_fault_in_code_is_not_reported_as_a_problem_of_the_targets(llama, monkeypatch):
    def broken(*_):
        return "1" + 1

    monkeypatch.setattr(LoRA, "_config", broken)
    with pytest.raises(TypeError, match="can only concatenate str"):
        LoRA().add_adapter(llama, None, 1, torch.Generator())


def test_beft_merges_where_all_targets_have_biases(llama):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    biased, bare = BEFT(target_modules=["q_proj"]), BEFT(target_modules=["q_proj"])
    biased.add_adapter(Qwen2ForCausalLM(Qwen2Config(**sizes, vocab_size=64)), None, 1, torch.Generator())
    bare.add_adapter(llama, None, 1, torch.Generator())
    assert not biased.traits.cannot_merge
    assert bare.traits.cannot_merge


@pytest.mark.parametrize(("options", "steps"), [({}, 1), ({"tinit": 2}, 4), ({"tfinal": 3}, 4)])
def test_adalora_needs_steps_to_choose_ranks_in(llama, options, steps):
    with pytest.raises(RecipeError, match=f"a run of {steps} steps has none left to choose ranks in"):
        AdaLoRA(**options).add_adapter(llama, None, steps, torch.Generator())


@pytest.mark.parametrize("steps", [2, 3, 100])
def test_adaloras_schedule_fits_the_run(llama, steps):
    config = AdaLoRA().add_adapter(llama, None, steps, torch.Generator()).peft_config["default"]
    assert config.total_step == steps
    assert (config.tinit, config.tfinal) == (steps // 10, min(steps // 2, steps - 2))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["corda", "eva", "loftq", "lora_ga", "mica", "milora", "moslora", "olora", "pissa"])
def test_variants_that_peft_makes_plain_lora_on_embeddings_are_refused_there(llama, name, device):
    adapter = find(name, Path()).load()(target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(RecipeError, match=f"`{name}` cannot adapt `model.embed_tokens`"):
        adapter.add_adapter(llama.to(device), None, 4, torch.Generator().manual_seed(0))
