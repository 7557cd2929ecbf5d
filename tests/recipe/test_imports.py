"""Configurations of other projects become recipes: keys and values of their published examples, rebuilt."""

import pytest
import yaml

from neoplug import recipe
from neoplug.errors import UsageError
from neoplug.recipe.imports import import_recipe

COMMON = {
    "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct", "stage": "sft", "do_train": True,
    "dataset": "identity,alpaca_en_demo", "template": "llama3", "cutoff_len": 2048, "max_samples": 1000,
    "overwrite_cache": True, "preprocessing_num_workers": 16, "logging_steps": 10, "save_steps": 500, "plot_loss": True,
    "overwrite_output_dir": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8,
    "learning_rate": 1e-4, "num_train_epochs": 3.0, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True,
    "ddp_timeout": 180000000,
}  # fmt: skip
LORA = COMMON | {"finetuning_type": "lora", "lora_rank": 8, "lora_target": "all"}
FULL = COMMON | {
    "finetuning_type": "full", "deepspeed": "z3.json", "gradient_accumulation_steps": 2, "learning_rate": 1e-5,
}  # fmt: skip
LORAPLUS = COMMON | {
    "finetuning_type": "lora", "lora_target": "all", "loraplus_lr_ratio": 16.0, "val_size": 0.1,
    "per_device_eval_batch_size": 1, "eval_strategy": "steps", "eval_steps": 500,
}  # fmt: skip
PISSA = LORA | {"pissa_init": True, "pissa_iter": 16, "pissa_convert": True}
QLORA = COMMON | {
    "finetuning_type": "lora", "lora_target": "all", "quantization_bit": 4, "quantization_method": "bitsandbytes",
}  # fmt: skip
SFT = {
    "model_name_or_path": "Qwen/Qwen2.5-0.5B", "dataset_name": "stanfordnlp/imdb", "report_to": "none",
    "learning_rate": 1e-4, "lr_scheduler_type": "cosine",
}  # fmt: skip
GKD = {
    "model_name_or_path": "Qwen/Qwen2-0.5B-Instruct", "teacher_model_name_or_path": "Qwen/Qwen2-1.5B-Instruct",
    "dataset_name": "trl-lib/chatbot_arena_completions", "learning_rate": 2e-4, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8, "num_train_epochs": 1, "push_to_hub": True, "use_peft": True, "lora_r": 64,
    "lora_alpha": 16,
}  # fmt: skip
DISTILLATION = {
    "model_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct", "teacher_model_name_or_path": "Qwen/Qwen2.5-1.5B-Instruct",
    "dataset_name": "trl-lib/chatbot_arena_completions", "learning_rate": 2e-5, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8, "num_train_epochs": 1, "lmbda": 0.0, "loss_top_k": 0,
}  # fmt: skip


@pytest.fixture
def imported(tmp_path):
    """Return a function that imports a configuration: the recipe loaded, its text, and the remarks."""

    def run(values, kind=None, files=()):
        file, made = tmp_path / "other.yaml", tmp_path / "made.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        text, remarks = import_recipe(file, kind)
        made.write_text(text, encoding="utf-8")
        for name in files:
            (tmp_path / name).write_text('{"text": "a"}\n')
        return recipe.load(made).resolved(), text, remarks

    return run


ROWS = ("identity.jsonl", "alpaca_en_demo.jsonl")


def test_llama_factorys_lora(imported):
    found, text, remarks = imported(LORA, files=ROWS)
    assert found["adapter"]["lora"]["r"] == 8
    assert found["adapter"]["lora"]["lora_alpha"] == 16  # twice the rank
    assert found["adapter"]["lora"]["target_modules"] == "all-linear"
    assert found["adapter"]["lora"]["lora_dropout"] == 0
    assert found["train"]["learning_rate"] == 1e-4
    assert found["train"]["warmup_steps"] == 0.1
    assert found["train"]["num_train_epochs"] == 3
    assert found["train"]["gradient_accumulation_steps"] == 8
    assert found["student"]["dtype"] == "bfloat16"
    assert found["seed"] == 42
    assert {source["max_rows"] for source in found["data"]["sources"].values()} == {1000}
    assert found["data"]["max_length"] == 2048
    assert "learning_rate: 0.0001 # learning_rate\n" in text
    assert "lora_alpha: 16 # default of LLaMA-Factory: twice lora_rank\n" in text
    assert any("dataset_info.json" in remark for remark in remarks)
    assert any("template llama3" in remark for remark in remarks)
    assert "# Not needed: ddp_timeout, do_train, overwrite_cache" in text


def test_data_that_only_llama_factory_can_find_are_no_valid_source(imported):
    """A name of its dataset_info.json must not be read as a dataset of the hub with the same name."""
    with pytest.raises(UsageError, match=r"no file or folder \./identity.jsonl"):
        imported(LORA)


def test_llama_factorys_full_fine_tuning(imported):
    found, _, _ = imported(FULL, files=ROWS)
    assert list(found["adapter"]) == ["full"]
    assert found["train"]["learning_rate"] == 1e-5


def test_llama_factorys_loraplus_with_evaluation(imported):
    found, _, _ = imported(LORAPLUS, files=ROWS)
    assert found["adapter"]["loraplus"]["lr_ratio"] == 16
    assert found["adapter"]["lora"]["r"] == 8
    assert found["data"]["held_out"] == 0.1
    assert found["evaluate"]["eval_steps"] == 500


def test_llama_factorys_pissa_and_what_has_no_counterpart(imported):
    found, _, remarks = imported(PISSA, files=ROWS)
    assert found["adapter"]["pissa"]["init_lora_weights"] == "pissa_niter_16"
    assert "pissa_convert: true" in remarks


def test_llama_factorys_qlora(imported):
    found, _, _ = imported(QLORA, files=ROWS)
    assert found["student"]["load"]["nf4"]["use_double_quant"] is True


def test_trls_sft_has_trls_defaults(imported):
    found, text, remarks = imported(SFT)
    assert found["data"]["source"] == "stanfordnlp/imdb"
    assert found["train"]["learning_rate"] == 1e-4
    assert found["train"]["num_train_epochs"] == 3
    assert found["train"]["per_device_train_batch_size"] == 8
    assert found["train"]["gradient_checkpointing"] is True
    assert found["data"]["max_length"] == 1024
    assert list(found["adapter"]) == ["full"]
    assert list(found["loss"]) == ["cross_entropy"]
    assert "per_device_train_batch_size: 8 # default of TRL: per_device_train_batch_size\n" in text
    assert any("scores whole conversations" in remark for remark in remarks)


def test_trls_gkd(imported):
    """Its JSD has no factor T^2, and the default temperature is 0.9; half of its answers are the student's."""
    found, _, remarks = imported(GKD, "trl-gkd")
    assert found["teacher"]["model"] == "Qwen/Qwen2-1.5B-Instruct"
    assert found["loss"]["jsd"]["beta"] == 0.5
    assert found["loss"]["jsd"]["temperature"] == 0.9
    assert found["loss"]["jsd"]["weight"] * 0.9**2 == pytest.approx(1)
    assert found["adapter"]["lora"]["r"] == 64
    assert found["adapter"]["lora"]["lora_alpha"] == 16
    assert found["adapter"]["lora"]["lora_dropout"] == 0.05
    assert any("lmbda is 0.5" in remark for remark in remarks)
    assert any("lora_target_modules" in remark for remark in remarks)


@pytest.mark.parametrize(("beta", "loss"), [(0, "forward_kl"), (1, "reverse_kl"), (0.3, "jsd")])
def test_the_ends_of_trls_beta_are_the_two_kls(imported, beta, loss):
    found, _, _ = imported(GKD | {"beta": beta}, "trl-gkd")
    assert list(found["loss"]) == [loss]


def test_trls_distillation(imported):
    found, _, remarks = imported(DISTILLATION)
    assert list(found["loss"]) == ["reverse_kl"]  # beta is 1 by default
    assert found["loss"]["reverse_kl"]["weight"] == 1
    assert not any("lmbda" in remark or "loss_top_k" in remark for remark in remarks)
    _, _, remarks = imported({key: value for key, value in DISTILLATION.items() if key != "loss_top_k"},
                             "trl-distillation")  # fmt: skip
    assert any("loss_top_k is 1" in remark for remark in remarks)


def test_a_kind_that_the_keys_do_not_decide_is_asked_for(imported):
    with pytest.raises(UsageError, match="--from"):
        imported(GKD)


@pytest.mark.parametrize(("changes", "message"), [
    ({"stage": "dpo"}, "stage is dpo"),
    ({"finetuning_type": "freeze"}, "finetuning_type is freeze"),
    ({"quantization_bit": 3}, "quantization_bit is 3"),
    ({"quantization_bit": 4, "quantization_method": "hqq"}, "quantization_method is hqq"),
    ({"dataset": None}, "has no dataset"),
])  # fmt: skip
def test_what_neoplug_does_not_have_is_refused(imported, changes, message):
    with pytest.raises(UsageError, match=message):
        imported(LORA | changes)


@pytest.mark.parametrize("key", ["use_galore", "neftune_noise_alpha", "rope_scaling", "badam_mode"])
def test_any_other_key_is_listed(imported, key):
    _, text, remarks = imported(LORA | {key: "x"}, files=ROWS)
    assert f"{key}: x" in remarks
    assert f"# Without a counterpart: {key}: x\n" in text


def test_a_file_that_is_no_map_is_refused(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UsageError, match="no map of keys"):
        import_recipe(tmp_path / "list.yaml", None)
