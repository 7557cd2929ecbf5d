"""Runs on models that are loaded by the options of their sections."""

import json
import shutil

import pytest
import torch

from neoplug.errors import RecipeError, UsageError
from neoplug.export.merge import export
from neoplug.registry.consent import Consent


@pytest.mark.slow
def test_teacher_and_student_are_quantised_independently(lab):
    more = {"adapter": {"dora": {"r": 4}}, "train": {"max_steps": 2}}
    run = lab.run("run", teacher={"load": {"fp4": {}}}, student={"load": {"int8": {}}}, **more)
    plain = lab.run("plain", **more)
    for quantised, noise in (("before", 0.01), ("teacher", 0.5)):
        ours, theirs = (found.result[quantised]["cross_entropy"] for found in (run, plain))
        assert 0 < abs(ours / theirs - 1) < noise


def test_a_plugin_that_reads_weights_as_they_are_leaves_all_of_them_to_be_trained(lab):
    """The base that `full` trains is loaded in float32 with it too, and not rounded to the student's dtype."""
    lab.plugin("watch", """
    @dataclass(eq=False)
    class Watch:
        @hookimpl
        def after_load(self, model, role):
            Path(__file__).with_name("dtype").write_text(str(model.dtype))
    """)  # fmt: skip
    student, more = {"dtype": "bfloat16"}, {"adapter": {"full": {}}, **steps(2)}
    run = lab.run("run", student=student | {"load": {"./watch.py:Watch": {}}}, **more)
    assert (lab.folder / "dtype").read_text() == "torch.float32"
    assert run.facts == lab.run("plain", student=student, **more).facts


def test_two_plugins_for_one_key_are_refused_before_weights_are_loaded(lab, monkeypatch):
    monkeypatch.setattr("neoplug.models.load.load_weights", pytest.fail)
    for role in ("teacher", "student"):
        with pytest.raises(RecipeError, match=r"recipe\.yaml:\d+:\d+: `\w+` and `\w+` both set `quantization_config`"):
            lab.run("run", **{role: {"load": {"nf4": {}, "int8": {}}}})


def test_a_model_stored_quantised_is_not_prepared(lab, tiny_student, monkeypatch):
    monkeypatch.setattr("neoplug.models.load.load_weights", pytest.fail)
    folder = shutil.copytree(tiny_student, lab.folder / "quantised")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (folder / "config.json").write_text(json.dumps(config))
    student = {"model": str(folder), "load": {"nf4": {}}, "prepare": {"prune_depth": {"layers": [0]}}}
    with pytest.raises(RecipeError, match="stored quantised, and cannot be prepared") as caught:
        lab.run("run", student=student)
    assert caught.value.problems[0].path == ("student", "prepare")


def steps(count, **more):
    """Return a short training at a constant rate, by plain gradient descent: its only state is the weights."""
    train = {"max_steps": count, "lr_scheduler_type": "constant", "learning_rate": 0.1, **more}
    return {"train": train, "optimizer": {"sgd": {}}}


@pytest.fixture(scope="module")
def first(module_lab):
    """Return a run of four steps with LoRA."""
    return module_lab.run("first", **steps(4))


def measured(values):
    return {name: value for name, value in values.items() if isinstance(value, float)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")  # peft uses deprecated names of transformers
def test_a_student_starts_from_its_stored_adapter(module_lab, first, tiny_student):
    """Plain peft loads the adapter that the second run saves."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = module_lab.run("second", student={"adapter_path": str(first.path / "adapter")}, **steps(2))
    assert measured(run.result["before"]) == pytest.approx(measured(first.result["after"]), rel=1e-6)
    assert first.result["before"]["cross_entropy"] != pytest.approx(first.result["after"]["cross_entropy"], rel=1e-4)
    assert not torch.equal(*(next(iter(each.adapter.values())) for each in (first, run)))
    record = run.lock["models"]["student"]["adapter"]
    assert record["source"] == str(first.path / "adapter")
    assert len(record["sha256"]) == 64
    assert "adapter" not in run.lock["models"]["teacher"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_student), run.path / "adapter")
    for name, weight in run.adapter.items():
        assert torch.equal(model.get_parameter(name.removesuffix(".weight") + ".default.weight"), weight)


def as_teacher(first, folder, **more):
    return {"model": str(folder), "adapter_path": str(first.path / "adapter"), **more}


def test_a_teacher_loads_its_adapter(module_lab, first, tiny_student):
    """The teacher is the first run's trained student."""
    run = module_lab.run("taught", teacher=as_teacher(first, tiny_student), **steps(1))
    assert run.result["teacher"]["cross_entropy"] == pytest.approx(first.result["after"]["cross_entropy"], rel=1e-6)
    assert set(run.lock["models"]["teacher"]["adapter"]) == {"source", "revision", "sha256"}


@pytest.mark.slow
def test_a_quantised_teacher_loads_its_adapter(module_lab, first, tiny_student):
    run = module_lab.run("small", teacher=as_teacher(first, tiny_student, load={"nf4": {}}), **steps(1))
    ratio = run.result["teacher"]["cross_entropy"] / first.result["after"]["cross_entropy"]
    assert 0 < abs(ratio - 1) < 0.2


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"lora": {"r": 8, "target_modules": ["q_proj", "v_proj"]}}, r"made with r 4, but `lora` builds r 8\n"),
        (
            {"dora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}},
            r"use_dora false, but `dora` builds use_dora true",
        ),
        ({"full": {}}, "cannot be loaded into what `full` trains"),
    ],
)
def test_an_adapter_of_another_form_is_refused_before_weights_are_loaded(
    module_lab, first, monkeypatch, adapter, message
):
    monkeypatch.setattr("neoplug.models.load.load_weights", pytest.fail)
    with pytest.raises(RecipeError, match=rf"recipe\.yaml:\d+:\d+: the adapter [\s\S]*{message}"):
        module_lab.run("refused", student={"adapter_path": str(first.path / "adapter")}, adapter=adapter)
    assert not (module_lab.folder / "refused").exists()


def test_a_teachers_adapter_that_does_not_fit_is_refused_before_weights_are_loaded(module_lab, first, monkeypatch):
    monkeypatch.setattr("neoplug.models.load.load_weights", pytest.fail)
    with pytest.raises(RecipeError, match=r"recipe\.yaml:\d+:\d+: the adapter [\s\S]*does not fit the model"):
        module_lab.run("refused", teacher={"adapter_path": str(first.path / "adapter")})


def test_a_path_without_an_adapter_is_refused_with_the_other_mistakes(lab):
    with pytest.raises(RecipeError) as caught:
        lab.run("run", teacher={"adapter_path": "./none"}, student={"adapter_path": "./nothing"})
    assert [problem.path for problem in caught.value.problems] == [(r, "adapter_path") for r in ("teacher", "student")]


def test_a_run_does_not_resume_with_another_stored_adapter(lab, first):
    adapter = shutil.copytree(first.path / "adapter", lab.folder / "adapter")
    run = lab.run("run", student={"adapter_path": "adapter"}, **steps(2))
    (run.path / "result.json").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_dropout": 0.5}))
    with pytest.raises(UsageError, match=r"models or data changed[\s\S]*models\.student\.adapter\.sha256"):
        lab.run("run", lab.folder / "run-recipe.yaml", resume=True)


def test_an_unknown_attention_implementation_is_refused_before_weights_are_loaded(lab, monkeypatch):
    monkeypatch.setattr("neoplug.models.load.load_weights", pytest.fail)
    for role in ("teacher", "student"):
        with pytest.raises(
            RecipeError,
            match=r"recipe\.yaml:\d+:\d+: .* cannot use the attention implementation `spda` here[\s\S]*eager, sdpa",
        ):
            lab.run("run", **{role: {"attn_implementation": "spda"}})


@pytest.fixture(scope="module")
def stored(tmp_path_factory, tiny_student):
    """Return the folder of the student stored in 4 bits."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = shutil.copytree(tiny_student, tmp_path_factory.mktemp("stored") / "nf4")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(tiny_student, quantization_config=config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_weights_stored_quantised_need_their_plugin(lab, stored):
    with pytest.raises(RecipeError, match="stored quantised, and no plugin under `load` sets them up"):
        lab.run("none", student={"model": str(stored)})
    with pytest.raises(UsageError, match="stored quantised already, with load_in_8bit False"):
        lab.run("other", student={"model": str(stored), "load": {"int8": {}}})
    run = lab.run("run", student={"model": str(stored), "load": {"nf4": {}}}, **steps(1))
    assert run.result["status"] == "completed"
    assert run.lines[0]["grad_norm"] > 0


@pytest.mark.slow
def test_the_python_code_of_a_student_is_saved_with_it(lab, custom_code):
    from transformers import AutoModelForCausalLM

    folder, ran = custom_code
    student = {"model": str(folder), "prepare": {"prune_depth": {"layers": [0]}}}
    with pytest.raises(RecipeError, match=r"set `trust_remote_code: true` in `student`"):
        lab.run("refused", student=student)
    with pytest.raises(RecipeError, match=f"--trust {folder}"):
        lab.run("asked", student=student | {"trust_remote_code": True})
    assert not ran.exists()
    Consent(trust=[folder])
    run = lab.run("run", student=student | {"trust_remote_code": True}, **steps(1))
    model = AutoModelForCausalLM.from_pretrained(export(run.path, lab.folder / "out"), trust_remote_code=True)
    assert (type(model).__name__, len(model.model.layers)) == ("CustomModel", 1)
    assert "subfolder='student', trust_remote_code=True)" in (run.path / "adapter" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "adapter"),
    [
        ({"load": {"nf4": {}}}, {"dora": {"r": 4}}),
        (
            {"prepare": {"prune_depth": {"layers": [0]}}},
            {"lora": {"r": 4, "modules_to_save": ["norm"]}, "loraplus": {}},
        ),
    ],
    ids=["quantised", "pruned"],
)
def test_a_run_on_any_base_starts_from_a_stored_adapter_and_resumes_bit_for_bit(lab, caplog, student, adapter):
    before = lab.run("before", student=student, adapter=adapter, **steps(2))
    run = lab.run("run", student=student | {"adapter_path": "before/adapter"}, adapter=adapter, **steps(4))
    assert measured(run.result["before"]) == pytest.approx(measured(before.result["after"]), rel=1e-6)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]  # the base is unchanged
    whole = run.adapter_bytes
    for part in ("checkpoints/step-4", "adapter"):
        shutil.rmtree(run.path / part)
    (run.path / "result.json").unlink()
    assert lab.run("run", lab.folder / "run-recipe.yaml", resume=True).adapter_bytes == whole
