"""Stored adapters: refused with a reason where they do not fit the model, else loaded into student and teacher."""

import json
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from neoplug.errors import RecipeError
from neoplug.files.contents import record
from neoplug.models.load import load_meta_model, load_weights
from neoplug.models.resolve import locate
from neoplug.models.stored_adapter import (
    load_adapter,
    load_adapter_weights,
    locate_adapter,
    validate_adapter_fits,
    validate_same_adapter,
    validate_start_fits,
    warn_other_base,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")  # peft calls transformers by old names
IDS = torch.arange(3, 43).view(2, 20)
KEY = ("student", "adapter_path")


def adapted(folder, **options):
    """Return a student on the meta device with an adapter."""
    return get_peft_model(load_meta_model(locate(str(folder)), "student"), lora(**options))


def lora(**options):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | options)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_student):
    """Return the folder of a LoRA with random weights on the tiny student."""
    torch.manual_seed(7)
    model = get_peft_model(load_weights(locate(str(tiny_student))), lora(init_lora_weights=False))
    model.save_pretrained(folder := tmp_path_factory.mktemp("adapter"))
    return folder


@pytest.fixture
def copy(adapter, tmp_path):
    """Return a copy of the adapter, for a test to damage."""
    return shutil.copytree(adapter, tmp_path / "copy")


def refusal(model, folder, plugin="lora"):
    with pytest.raises(RecipeError) as caught:
        validate_same_adapter(model, locate_adapter(str(folder), KEY), plugin)
    (problem,) = caught.value.problems
    assert problem.path == KEY
    return problem


@pytest.mark.parametrize(
    ("options", "stored", "built"),
    [
        ({"r": 8}, "r 4", "r 8"),
        ({"lora_alpha": 16, "use_rslora": True}, "lora_alpha 8, use_rslora false", "lora_alpha 16, use_rslora true"),
        ({"use_dora": True}, "use_dora false", "use_dora true"),
        ({"target_modules": ["q_proj"]}, "target_modules [q_proj, v_proj]", "target_modules [q_proj]"),
        ({"layers_to_transform": [1]}, "layers_to_transform null", "layers_to_transform [1]"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern null", "alpha_pattern {'q_proj': 3}"),
        ({"modules_to_save": ["norm"]}, "modules_to_save null", "modules_to_save [norm]"),
    ],
)
def test_a_difference_is_reported_with_both_values(adapter, tiny_student, options, stored, built):
    problem = refusal(adapted(tiny_student, **options), adapter)
    assert f"was made with {stored}, but `lora` builds {built}" in problem.what


def test_fields_that_do_not_change_the_function_may_differ(adapter, tiny_student):
    regex = r".*self_attn\.(q|v)_proj"  # selects the same modules
    model = adapted(tiny_student, lora_dropout=0.3, init_lora_weights="gaussian", target_modules=regex)
    validate_same_adapter(model, locate_adapter(str(adapter)), "lora")


def test_an_adapter_whose_initialisation_changed_the_base_differs(copy, tiny_student):
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
    assert "init_lora_weights pissa" in refusal(adapted(tiny_student), copy).what


def test_an_adapter_of_another_method_is_refused(adapter, tiny_student):
    model = get_peft_model(
        load_meta_model(locate(str(tiny_student)), "student"),
        IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    )
    problem = refusal(model, adapter, "ia3")
    assert "peft_type LORA, but `ia3` builds peft_type IA3" in problem.what
    assert (
        "cannot be loaded into what"
        in refusal(load_meta_model(locate(str(tiny_student)), "student"), adapter, "full").what
    )


def test_a_model_of_another_size_is_refused(adapter, tiny_teacher):
    assert "model has no such weight" not in (problem := refusal(adapted(tiny_teacher), adapter)).what
    assert "weights differ" in problem.what  # it has more layers too
    meta = load_meta_model(locate(str(tiny_teacher)), "teacher")
    with pytest.raises(RecipeError, match="does not fit the model"):
        validate_adapter_fits(meta, locate_adapter(str(adapter)))


def test_shapes_are_compared_before_weights_are_loaded(copy, tiny_student):
    weights = load_file(copy / "adapter_model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: torch.zeros(4, 7)}, copy / "adapter_model.safetensors")
    assert f"{name} is [4, 7], but the model needs [4, 48]" in refusal(adapted(tiny_student), copy).what
    with pytest.raises(RecipeError, match=r"is \[4, 7\]"):
        validate_adapter_fits(load_meta_model(locate(str(tiny_student)), "teacher"), locate_adapter(str(copy)))


def test_a_teachers_adapter_on_resized_embeddings_is_refused(copy, tiny_student):
    weights, rows = load_file(copy / "adapter_model.safetensors"), 400
    embeddings = {"base_model.model.model.embed_tokens.weight": torch.zeros(rows, 48)}
    save_file(weights | embeddings, copy / "adapter_model.safetensors")
    with pytest.raises(RecipeError, match=rf"holds .*embed_tokens.weight of shape \[{rows}, 48\](.|\n)*to {rows} rows"):
        validate_adapter_fits(load_meta_model(locate(str(tiny_student)), "teacher"), locate_adapter(str(copy)))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_a_start_that_was_not_converted_is_refused_for_a_quantised_model(copy, start):
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": start}))
    stored = locate_adapter(str(copy))
    validate_start_fits(stored, is_quantised=False)
    with pytest.raises(RecipeError, match=f"init_lora_weights: {start}, was not converted"):
        validate_start_fits(stored, is_quantised=True)


@pytest.mark.parametrize("start", [True, False, "gaussian"])
def test_other_starts_fit_a_quantised_model(copy, start):
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": start}))
    validate_start_fits(locate_adapter(str(copy)), is_quantised=True)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_model.safetensors", b"\x10\0\0\0\0\0\0\0{", "has weights that cannot be read"),
        ("adapter_config.json", b"{", "has no adapter_config.json that peft can read"),
        ("adapter_config.json", b'{"peft_type": "NOVEL"}', "has no adapter_config.json that peft can read"),
        ("adapter_model.safetensors", None, "its folder has no adapter_model.safetensors"),
        ("adapter_config.json", None, "its folder has no adapter_config.json"),
    ],
)
def test_damaged_files_are_refused(copy, tiny_student, file, content, message):
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        validate_same_adapter(adapted(tiny_student), locate_adapter(str(copy), KEY), "lora")


def test_the_adapter_of_a_run_is_compared_with_the_runs_record(tmp_path, adapter):
    shutil.copytree(adapter, tmp_path / "adapter")
    record(tmp_path, "adapter")
    assert locate_adapter(str(tmp_path / "adapter")).folder == tmp_path / "adapter"
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RecipeError, match=r"adapter/adapter_model\.safetensors does not have the contents") as refused:
        locate_adapter(str(tmp_path / "adapter"), KEY)
    assert refused.value.problems[0].path == KEY


def test_an_unknown_name_is_refused():
    with pytest.raises(RecipeError, match="is not a local folder, and was not found on the hub or in its cache"):
        locate_adapter("unknown/adapter", KEY)


def test_a_hub_id_is_pinned_to_its_commit(tmp_path, adapter, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some--adapter"
    shutil.copytree(adapter, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    located, local = locate_adapter("some/adapter"), locate_adapter(str(adapter))
    assert (located.revision, located.source) == (commit, "some/adapter")
    assert located.sha256 == local.sha256


def test_student_and_teacher_get_the_stored_weights(adapter, tiny_student):
    """In the student's adapter, which is trainable, and in the teacher's, which is frozen."""
    stored = locate_adapter(str(adapter))
    student = get_peft_model(load_weights(locate(str(tiny_student))), lora())
    load_adapter_weights(student, stored, "lora")
    teacher = load_adapter(load_weights(locate(str(tiny_student))), stored)
    for name, expected in load_file(adapter / "adapter_model.safetensors").items():
        name = name.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default")
        assert torch.equal(student.get_parameter(name), expected)
        assert torch.equal(teacher.get_parameter(name), expected)
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert not teacher.training
    assert sum(weight.requires_grad for weight in student.parameters()) == 8


@pytest.mark.filterwarnings("ignore:.*save_embedding_layers", "ignore:.*ensure_weight_tying")
def test_stored_base_embeddings_must_equal_those_of_the_base(tmp_path, tiny_teacher):
    base, options = locate(str(tiny_teacher)), {"target_modules": ["q_proj", "embed_tokens"]}
    trained = get_peft_model(load_weights(base), lora(init_lora_weights=False, **options))
    trained.save_pretrained(tmp_path)
    student, stored = get_peft_model(load_weights(base), lora(**options)), locate_adapter(str(tmp_path), KEY)
    load_adapter_weights(student, stored, "lora")
    with torch.no_grad():
        assert torch.equal(student(IDS).logits, trained.eval()(IDS).logits)
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    save_file(stored.weights | {name: stored.weights[name] + 1}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RecipeError, match=rf"holds {name}, which differs from that of the student's base"):
        load_adapter_weights(student, locate_adapter(str(tmp_path), KEY), "lora")


def test_another_base_is_logged_as_a_warning(adapter, tiny_student, tiny_teacher, tmp_path, caplog):
    stored, moved = locate_adapter(str(adapter)), shutil.copytree(tiny_student, tmp_path / "moved")
    for base in (tiny_student, moved):
        warn_other_base(stored, locate(str(base)))
    assert not caplog.records
    warn_other_base(stored, locate(str(tiny_teacher)))
    assert f"was trained on {tiny_student}, but is loaded into {tiny_teacher}" in caplog.text
