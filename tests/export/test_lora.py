"""Export as a plain LoRA: with peft it reproduces the run on the stored base, and other readers can load it."""

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from neoplug.errors import UsageError
from neoplug.export.lora import export_lora
from neoplug.export.merge import export
from neoplug.testing.families import make
from tests.models.conftest import write_gguf

from .test_merge import logits, make_run, quantised

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning"),  # raised within peft
]


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def train(base, options):
    """Return a PeftModel whose weights differ much from its base."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    usual = {"r": 4, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(**usual | options))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def with_lora(base, folder):
    """Return the logits of peft's model, on the base that the folder names."""
    from peft import AutoPeftModelForCausalLM

    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    return logits(AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


@pytest.fixture
def trained_run(tmp_path):
    """Return a function that trains an adapter of these options on a model and saves it as a run."""

    def keep(folder, name="lora", **options):
        run = make_run(tmp_path / "run", folder, {name: {}})
        model = train(plain(folder), options)
        model.save_pretrained(run.adapter)
        return run.path, logits(model)

    return keep


VARIED = {"rank_pattern": {"q_proj": 2, "down_proj": 6}, "alpha_pattern": {"k_proj": 3}, "use_rslora": True}


@pytest.mark.parametrize("options", [{}, VARIED], ids=["plain", "patterns"])
def test_a_change_of_low_rank_is_exact_with_one_rank_and_one_scale(tmp_path, tiny_teacher, trained_run, options):
    run, wanted = trained_run(tiny_teacher, **options)
    found = export_lora(run, tmp_path / "lora")
    assert found.exact
    assert found.rank == found.needed == (6 if options else 4)
    assert found.error < 1e-5
    torch.testing.assert_close(with_lora(tiny_teacher, tmp_path / "lora"), wanted, rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"]) == (found.rank, found.rank, "none")
    assert not any(
        config[key] for key in ("rank_pattern", "alpha_pattern", "modules_to_save", "use_dora", "use_rslora")
    )
    assert sorted(config["target_modules"]) == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_file_has_the_format_that_other_programs_load(tmp_path, tiny_student, trained_run, dtype):
    run, _ = trained_run(tiny_student)
    export_lora(run, tmp_path / "lora", dtype, rank=8)
    base = plain(tiny_student)
    with safe_open(tmp_path / "lora" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
        for name in names:
            tensor, (layer, side) = file.get_tensor(name), name.removesuffix(".weight").rsplit(".", 1)
            outputs, inputs = base.get_parameter(f"{layer.removeprefix('base_model.model.')}.weight").shape
            assert tensor.shape == {"lora_A": (8, inputs), "lora_B": (outputs, 8)}[side]
            assert tensor.dtype == getattr(torch, dtype)
    assert len(names) == 2 * 2 * 7
    assert {file.name for file in (tmp_path / "lora").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "export.json", "README.md",
    }  # fmt: skip


def test_a_change_of_full_rank_is_reported_as_an_approximation(tmp_path, tiny_teacher, trained_run):
    run, wanted = trained_run(tiny_teacher, "dora", use_dora=True)
    found = export_lora(run, tmp_path / "lora")
    assert (found.rank, found.needed, found.exact) == (4, 64, False)  # the adapter's rank: an exact LoRA is no smaller
    before, after = plain(tiny_teacher).state_dict(), plain(export(run, tmp_path / "merged")).state_dict()
    record = json.loads((tmp_path / "lora" / "export.json").read_text())
    lost = whole = 0
    for name, layer in record["layers"].items():
        change = (after[f"{name}.weight"].double() - before[f"{name}.weight"].double()).numpy()
        sizes = np.linalg.svd(change, compute_uv=False)
        share = np.linalg.norm(sizes[4:]) / np.linalg.norm(sizes)
        assert layer["relative_error"] == pytest.approx(share, rel=1e-4)
        lost, whole = lost + (sizes[4:] ** 2).sum(), whole + (sizes**2).sum()
    assert record["relative_error"] == found.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert (
        f"an approximation: rank 4, and the change has rank 64; relative error {found.error:.1e}"
        in (tmp_path / "lora" / "README.md").read_text()
    )
    near = (with_lora(tiny_teacher, tmp_path / "lora") - wanted).norm()
    assert 0 < near < (logits(plain(tiny_teacher)) - wanted).norm()


def test_the_base_is_the_stored_one_not_the_quantised(tmp_path, tiny_student):
    run = make_run(tmp_path / "run", tiny_student, {"lora": {}})
    train(quantised(tiny_student, "nf4"), {}).save_pretrained(run.adapter)
    assert export_lora(run.path, tmp_path / "lora").exact
    wanted = logits(plain(export(run.path, tmp_path / "merged")))
    torch.testing.assert_close(with_lora(tiny_student, tmp_path / "lora"), wanted, rtol=1e-4, atol=1e-4)


def test_transposed_layers_are_transposed_back(tmp_path, trained_run):
    base = make("gpt2", tmp_path / "base")
    run, wanted = trained_run(base, fan_in_fan_out=True)
    assert export_lora(run, tmp_path / "lora").exact
    torch.testing.assert_close(with_lora(base, tmp_path / "lora"), wanted, rtol=1e-4, atol=1e-4)


def test_a_subset_of_layers_is_listed_by_full_names(tmp_path, tiny_student, trained_run):
    run, wanted = trained_run(tiny_student, exclude_modules=r".*layers\.0\..*")
    export_lora(run, tmp_path / "lora")
    assert all(".1." in name for name in load_file(tmp_path / "lora" / "adapter_model.safetensors"))
    torch.testing.assert_close(with_lora(tiny_student, tmp_path / "lora"), wanted, rtol=1e-4, atol=1e-4)


def test_a_change_outside_linear_layers_is_refused(tmp_path, tiny_student, trained_run):
    run = make_run(tmp_path / "full", tiny_student, {"full": {}})
    model = plain(tiny_student)
    model.model.norm.weight.data += 0.01
    model.save_pretrained(run.model)
    with pytest.raises(UsageError, match=r"model\.norm\.weight changed, and a LoRA changes weights of linear layers"):
        export_lora(run.path, tmp_path / "out")
    model.get_input_embeddings().weight.data += 0.01
    model.save_pretrained(run.model)
    with pytest.raises(UsageError, match=r"model\.embed_tokens\.weight and 1 more changed"):
        export_lora(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")  # of experts, skipped
def test_a_change_of_experts_is_refused(tmp_path, trained_run):
    run, _ = trained_run(make("qwen3_moe", tmp_path / "base"))
    with pytest.raises(UsageError, match=r"model\.layers\.0\.mlp\.experts\.gate_up_proj and \d more changed"):
        export_lora(run, tmp_path / "out")


# llama.cpp ----------------------------------------------------------------------------------------------------------


def read(file):
    """Return the fields and tensors [R, I] or [O, R] of a GGUF file in float32."""
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_gguf_file_has_the_matrices_of_the_folder(tmp_path, tiny_student, trained_run, dtype):
    run, _ = trained_run(tiny_student)
    export_lora(run, tmp_path / "lora", dtype, gguf=True)
    fields, tensors = read(tmp_path / "lora" / "adapter.gguf")
    assert fields["general.type"] == "adapter"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 4.0
    weights = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert len(tensors) == len(weights)
    for layer, theirs in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
        for side in "AB":
            ours = weights[f"base_model.model.model.layers.1.{layer}.lora_{side}.weight"].float()
            assert np.array_equal(tensors[f"blk.1.{theirs}.weight.lora_{side.lower()}"], ours.numpy())


def test_gguf_lora_plus_gguf_base_equals_the_student(tmp_path, tiny_teacher, tiny_tokenizer, trained_run, monkeypatch):
    """W + alpha / R B A on the tensors of a GGUF file; transformers then reads a file without LoRA."""
    run, wanted = trained_run(tiny_teacher)
    export_lora(run, tmp_path / "lora", gguf=True)
    fields, tensors = read(tmp_path / "lora" / "adapter.gguf")
    model = plain(tiny_teacher)
    added = []

    def tensors_with(model, usual=write_gguf.__globals__["tensors"]):
        for name, weight in usual(model):
            up, down = (tensors.get(f"{name}.lora_{side}") for side in "ba")
            if up is not None:
                assert (up.shape[0], down.shape[1]) == weight.shape
                weight = weight + fields["adapter.lora.alpha"] / down.shape[0] * up @ down
                added.append(name)
            yield name, weight
        yield "output.weight", model.state_dict()["lm_head.weight"].numpy()

    monkeypatch.setitem(write_gguf.__globals__, "tensors", tensors_with)
    file = write_gguf(tmp_path / "student.gguf", model, tiny_tokenizer)
    assert len(added) == len(tensors) / 2 == 4 * 7
    student = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    torch.testing.assert_close(logits(student), wanted, rtol=1e-4, atol=1e-4)


EXPERTS = ["mixtral", "qwen3_moe"]
KNOWN = ["gemma2", "gemma3_text", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3"]  # for transformers' reader


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")  # of experts, skipped
@pytest.mark.parametrize("family", [*KNOWN, *EXPERTS, "cohere", "granite", "olmo2", "smollm3"])
def test_names_and_rows_are_those_that_transformers_reads_back(tmp_path, trained_run, family):
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    base = make(family, tmp_path / "base")
    attention = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]} if family in EXPERTS else {}
    run, wanted = trained_run(base, fan_in_fan_out=family == "gpt2", **attention)
    assert export_lora(run, tmp_path / "lora", gguf=True).exact
    torch.testing.assert_close(with_lora(base, tmp_path / "lora"), wanted, rtol=1e-3, atol=1e-3)
    fields, tensors = read(tmp_path / "lora" / "adapter.gguf")
    model, after = plain(base), plain(export(run, tmp_path / "merged")).state_dict()
    reader = {"mixtral": "llama", "granite": "llama", "smollm3": "llama"}.get(family, fields["general.architecture"])
    processor = TENSOR_PROCESSORS.get(reader, TensorProcessor)(config=model.config.to_dict())
    known_as = {"mistral": "llama", "mixtral": "llama"}.get(family, family)
    names = get_gguf_hf_weights_map(model, processor, model_type=known_as)
    before, changed = model.state_dict(), set()
    for name in {name.rpartition(".")[0] for name in tensors}:
        delta = tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
        back = torch.from_numpy(np.ascontiguousarray(processor.process(delta, name).weights))
        torch.testing.assert_close(back, after[names[name]] - before[names[name]], rtol=1e-3, atol=1e-4)
        changed.add(names[name])
    assert changed == {name for name in after if name in before and not torch.equal(after[name], before[name])}


def test_a_family_with_unknown_order_in_llama_cpp_is_refused_before_it_is_loaded(tmp_path, trained_run, monkeypatch):
    run, _ = trained_run(make("bloom", tmp_path / "base"))
    monkeypatch.setattr("neoplug.export.merge.load_weights", None)
    with pytest.raises(UsageError, match="names and orders the weights of a `bloom`"):
        export_lora(run, tmp_path / "lora", gguf=True)


@pytest.mark.filterwarnings("ignore:Model (with|has) `tie_word_embeddings=True`:UserWarning")
def test_a_tied_head_is_in_the_folder_but_refused_for_gguf(tmp_path, tiny_student):
    from peft import LoraConfig, get_peft_model

    run = make_run(tmp_path / "run", tiny_student, {"lora": {}})
    model = get_peft_model(plain(tiny_student), LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))
    torch.nn.init.normal_(model.base_model.model.lm_head.lora_B["default"].weight, std=0.1)
    model.save_pretrained(run.adapter, save_embedding_layers=False)
    export_lora(run.path, tmp_path / "lora")
    torch.testing.assert_close(with_lora(tiny_student, tmp_path / "lora"), logits(model), rtol=1e-4, atol=1e-4)
    with pytest.raises(
        UsageError, match="does not support a LoRA on `lm_head`\nwhy: a GGUF of a model with tied embeddings"
    ):
        export_lora(run.path, tmp_path / "other", gguf=True)
    assert not (tmp_path / "other").exists()
