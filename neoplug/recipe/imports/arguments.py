"""Keys that both projects take from transformers' TrainingArguments and from peft."""

from typing import Any

from neoplug.errors import UsageError
from neoplug.recipe.imports.draft import Draft
from neoplug.recipe.schema import TRACKERS

TRAINING_DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8,
    "seed": 42,
    "warmup_steps": 0,
    "weight_decay": 0.0,
}
SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt")  # as in transformers
OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}
# Where files are kept, how data are prepared, what is printed: nothing of what is trained.
IGNORED = frozenset(
    [
        "cache_dir",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataset_num_proc",
        "ddp_timeout",
        "deepspeed",
        "disable_tqdm",
        "do_eval",
        "do_train",
        "env",
        "hub_model_id",
        "hub_strategy",
        "logging_dir",
        "logging_strategy",
        "overwrite_cache",
        "overwrite_output_dir",
        "plot_loss",
        "preprocessing_batch_size",
        "preprocessing_num_workers",
        "push_to_hub",
        "remove_unused_columns",
        "resume_from_checkpoint",
        "run_name",
        "save_only_model",
        "save_strategy",
        "use_liger_kernel",
    ]
)


def training(draft: Draft) -> None:
    """Convert the training loop, the optimizer, the evaluation, and where the run is written."""
    if (steps := draft.take("max_steps")[0]) is not None and steps > 0:
        draft.set("train.max_steps", steps, "max_steps")
        draft.take("num_train_epochs")
    else:
        draft.move("num_train_epochs", "train.num_train_epochs")
    for key in ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm"):
        draft.move(key, f"train.{key}")
    _schedule(draft)
    for key in ("gradient_checkpointing", "logging_steps", "save_steps", "save_total_limit", "full_determinism"):
        draft.move(key, f"train.{key}")
    _optimizer(draft)
    draft.move("per_device_eval_batch_size", "evaluate.per_device_eval_batch_size")
    strategy = draft.take("eval_strategy")[0] or draft.take("evaluation_strategy")[0]
    if strategy == "steps":
        draft.move("eval_steps", "evaluate.eval_steps")
    draft.move("seed", "seed")
    draft.move("output_dir", "output_dir")
    trackers, comment = draft.take("report_to")
    named = [trackers] if isinstance(trackers, str) else trackers or []
    if known := [name for name in named if name in TRACKERS]:
        draft.set("report_to", known, comment)


def _schedule(draft: Draft) -> None:
    name, comment = draft.take("lr_scheduler_type")
    if name not in SCHEDULES:
        draft.open.append(f"lr_scheduler_type {name} is not available; the recipe has {SCHEDULES[0]}")
        name = SCHEDULES[0]
    draft.set("train.lr_scheduler_type", name, comment)
    steps, comment = draft.take("warmup_steps")
    ratio = draft.take("warmup_ratio")[0]
    draft.set("train.warmup_steps", ratio or steps, "warmup_ratio" if ratio else comment)


def _optimizer(draft: Draft) -> None:
    named = draft.take("optim")[0] or "adamw_torch"
    optimizer = OPTIMIZERS.get(named)
    if optimizer is None:
        draft.open.append(f"optim {named} is not available; the recipe has adamw")
        optimizer = "adamw"
    decay, comment = draft.take("weight_decay")
    draft.set(f"optimizer.{optimizer}.weight_decay", decay, comment)
    betas = [draft.take("adam_beta1")[0] or 0.9, draft.take("adam_beta2")[0] or 0.999]
    if optimizer.endswith(("adamw", "8bit")):
        draft.set(f"optimizer.{optimizer}.betas", betas, "adam_beta1, adam_beta2")
        epsilon = draft.take("adam_epsilon")[0]
        if epsilon is not None:
            draft.set(f"optimizer.{optimizer}.eps", epsilon, "adam_epsilon")


def precision(draft: Draft, roles: list[str]) -> None:
    """Convert the data type in which the models compute."""
    half, comment = draft.take("bf16")
    if draft.take("fp16")[0]:
        draft.open.append("fp16 is not available; the recipe has bfloat16")
        half, comment = True, "fp16"
    for role in roles if half else ():
        draft.set(f"{role}.dtype", "bfloat16", comment)


def quantisation(draft: Draft, bits: Any, kind: Any, double: Any, comment: str) -> None:
    """Convert a quantised student. Raises UsageError for a number of bits that is not available."""
    if bits in (None, False):
        return
    if bits not in (4, 8):
        raise UsageError(f"{comment} is {bits}\nwhy: neoplug quantises to 4 or 8 bits\nfix: set 4 or 8")
    plugin = "int8" if bits == 8 else kind or "nf4"
    options = {} if bits == 8 else {"use_double_quant": bool(double)}
    draft.set("student.load", {plugin: options}, comment)
