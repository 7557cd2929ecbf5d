"""TRL's configurations for SFT, GKD and distillation."""

from neoplug.errors import UsageError
from neoplug.recipe.imports.arguments import TRAINING_DEFAULTS, precision, quantisation, training
from neoplug.recipe.imports.draft import Draft

SFT_DEFAULTS = TRAINING_DEFAULTS | {
    "bf16": True,
    "dataset_train_split": "train",
    "gradient_checkpointing": True,
    "learning_rate": 2e-5,
    "logging_steps": 10,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "lora_r": 16,
    "max_length": 1024,
    "packing": False,
}
GKD_DEFAULTS = SFT_DEFAULTS | {"beta": 0.5, "lmbda": 0.5, "temperature": 0.9}
DISTILLATION_DEFAULTS = SFT_DEFAULTS | {
    "beta": 1.0,
    "learning_rate": 1e-6,
    "lmbda": 1.0,
    "loss_top_k": 1,
    "temperature": 1.0,
}


def sft(draft: Draft) -> None:
    """Convert a configuration of `trl sft`."""
    _models(draft)
    _data(draft)
    if draft.take("assistant_only_loss")[0] or draft.take("completion_only_loss")[0]:
        draft.set("data.train_on", "answers", "assistant_only_loss or completion_only_loss")
    else:
        draft.open.append(
            "TRL scores whole conversations, and completions alone of prompts; `data.train_on: all` is the former"
        )
    _adapter(draft)
    kind = draft.take("loss_type")[0]
    if kind not in (None, "nll", "chunked_nll"):
        raise UsageError(f"loss_type is {kind}\nwhy: neoplug has no such loss\nfix: import it with nll")
    draft.set("loss.cross_entropy.weight", 1.0, "the loss of SFT")
    training(draft)


def gkd(draft: Draft) -> None:
    """Convert a configuration of TRL's GKD."""
    _distil(draft)


def distillation(draft: Draft) -> None:
    """Convert a configuration of TRL's distillation trainer."""
    top_k, comment = draft.take("loss_top_k")
    if top_k:
        draft.open.append(f"{comment} is {top_k}, a loss over these tokens alone; the recipe's is over the vocabulary")
    _distil(draft)


def _distil(draft: Draft) -> None:
    _models(draft)
    teacher, comment = draft.take("teacher_model_name_or_path")
    if teacher is None:
        teacher, comment = (
            draft.lines["student", "model"][0],
            "TRL's teacher is the untrained student where none is named",
        )
    draft.set("teacher.model", teacher, comment)
    draft.move("teacher_model_revision", "teacher.revision")
    precision(draft, ["student", "teacher"])
    _data(draft)
    _adapter(draft)
    share, comment = draft.take("lmbda")
    if share:
        draft.open.append(
            f"{comment} is {share}: that share of the answers is sampled by the student, here all are the data's"
        )
    beta, comment = draft.take("beta")
    temperature, of_temperature = draft.take("temperature")
    plugin = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(float(beta), "jsd")
    if plugin == "jsd":
        draft.set("loss.jsd.beta", float(beta), comment)
    draft.set(f"loss.{plugin}.temperature", float(temperature), of_temperature)
    note = "1 / temperature^2: TRL has no factor temperature^2" if temperature != 1 else "the only loss"
    draft.set(f"loss.{plugin}.weight", round(1 / temperature**2, 7), note)
    training(draft)


def _models(draft: Draft) -> None:
    if draft.move("model_name_or_path", "student.model") is None:
        raise UsageError("the configuration has no model_name_or_path\nfix: add it")
    draft.move("model_revision", "student.revision")
    for key in ("attn_implementation", "trust_remote_code"):
        draft.move(key, f"student.{key}")
    dtype, comment = draft.take("dtype") if "dtype" in draft.given else draft.take("torch_dtype")
    if dtype in ("float32", "bfloat16"):
        draft.set("student.dtype", dtype, comment)
    bits = 4 if draft.take("load_in_4bit")[0] else 8 if draft.take("load_in_8bit")[0] else None
    kind, double = draft.take("bnb_4bit_quant_type")[0], draft.take("use_bnb_nested_quant")[0]
    quantisation(draft, bits, kind, double, f"load_in_{bits}bit")
    precision(draft, [] if dtype else ["student"])


def _data(draft: Draft) -> None:
    if draft.move("dataset_name", "data.source") is None:
        raise UsageError("the configuration has no dataset_name\nwhy: a recipe names its data\nfix: add it")
    draft.move("dataset_config", "data.name")
    draft.move("dataset_train_split", "data.split")
    if (column := draft.take("dataset_text_field")[0]) not in (None, "text"):
        draft.set("data.columns.text", column, "dataset_text_field")
    draft.move("max_length", "data.max_length")
    draft.move("packing", "data.packing")


def _adapter(draft: Draft) -> None:
    keys = ("lora_r", "lora_alpha", "lora_dropout")
    if not draft.take("use_peft")[0]:
        draft.set("adapter.full", {}, "without use_peft every weight is trained")
        for key in keys:
            draft.given.pop(key, None)
        return
    for key, option in zip(keys, ("r", "lora_alpha", "lora_dropout"), strict=True):
        draft.move(key, f"adapter.lora.{option}")
    targets, comment = draft.take("lora_target_modules")
    if targets in (None, []):
        draft.open.append(
            "lora_target_modules is not set: TRL takes peft's choice for the model, the recipe every linear layer"
        )
    elif targets in ("all-linear", ["all-linear"]):
        draft.set("adapter.lora.target_modules", "all-linear", comment)
    else:
        draft.set("adapter.lora.target_modules", targets, comment)
    draft.move("lora_modules_to_save", "adapter.lora.modules_to_save")
    draft.move("use_rslora", "adapter.lora.use_rslora")
