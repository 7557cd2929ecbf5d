"""LLaMA-Factory's configurations of stage sft."""

from typing import Any

from neoplug.errors import UsageError
from neoplug.recipe.imports.arguments import TRAINING_DEFAULTS, precision, quantisation, training
from neoplug.recipe.imports.draft import Draft

DEFAULTS = TRAINING_DEFAULTS | {
    "cutoff_len": 2048,
    "double_quantization": True,
    "lora_dropout": 0.0,
    "lora_rank": 8,
    "lora_target": "all",
    "pissa_iter": 16,
    "quantization_type": "nf4",
}


def sft(draft: Draft) -> None:
    """Convert a configuration. Raises UsageError for a stage or a tuning that neoplug does not have."""
    if (stage := draft.take("stage")[0]) not in (None, "sft"):
        raise UsageError(
            f"stage is {stage}\nwhy: neoplug distils and fine-tunes\nfix: import a configuration of stage sft"
        )
    if draft.move("model_name_or_path", "student.model") is None:
        raise UsageError("the configuration has no model_name_or_path\nfix: add it")
    draft.move("trust_remote_code", "student.trust_remote_code")
    draft.move("adapter_name_or_path", "student.adapter_path")
    method = draft.take("quantization_method")[0]
    if method not in (None, "bitsandbytes", "bnb"):
        raise UsageError(f"quantization_method is {method}\nwhy: neoplug quantises by bitsandbytes\nfix: leave it out")
    kind, double = draft.take("quantization_type")[0], draft.take("double_quantization")[0]
    quantisation(draft, draft.take("quantization_bit")[0], kind, double, "quantization_bit")
    precision(draft, ["student"])
    _data(draft)
    _adapter(draft)
    draft.set("loss.cross_entropy.weight", 1.0, "the loss of stage sft")
    draft.open.append(
        "there is no teacher; to distil, add `teacher: {model: ...}` and `forward_kl` beside cross_entropy"
    )
    training(draft)


def _data(draft: Draft) -> None:
    named = draft.take("dataset")[0]
    names = [name.strip() for name in named.split(",")] if isinstance(named, str) else named or []
    if not names:
        raise UsageError("the configuration has no dataset\nwhy: a recipe names its data\nfix: add it")
    rows = draft.take("max_samples")[0]
    for name in names:
        place = f"data.sources.{name}" if len(names) > 1 else "data"
        draft.set(f"{place}.source", f"./{name}.jsonl", "dataset")
        if rows is not None:
            draft.set(f"{place}.max_rows", rows, "max_samples")
    draft.open.append(f"where {' and '.join(names)} lie: LLaMA-Factory looks these names up in its dataset_info.json")
    if template := draft.take("template")[0]:
        draft.open.append(f"template {template} is LLaMA-Factory's; the recipe uses the tokenizer's own")
    draft.move("cutoff_len", "data.max_length")
    packing, comment = draft.take("packing")
    draft.set("data.packing", bool(packing), comment)
    if held_out := draft.take("val_size")[0]:
        draft.set("data.held_out", held_out, "val_size")
    if draft.take("train_on_prompt")[0]:
        draft.set("data.train_on", "all", "train_on_prompt")
    elif draft.take("mask_history")[0]:
        draft.set("data.train_on", "last", "mask_history")


def _adapter(draft: Draft) -> None:
    tuning = draft.take("finetuning_type")[0] or "lora"
    if tuning == "full":
        draft.set("adapter.full", {}, "finetuning_type")
        return
    if tuning != "lora":
        raise UsageError(f"finetuning_type is {tuning}\nwhy: it has no counterpart\nfix: import one of lora or full")
    plugin, start = _variant(draft)
    rank = draft.move("lora_rank", f"adapter.{plugin}.r")
    alpha = draft.take("lora_alpha")[0]
    comment = "lora_alpha" if alpha is not None else "default of LLaMA-Factory: twice lora_rank"
    draft.set(f"adapter.{plugin}.lora_alpha", 2 * rank if alpha is None else alpha, comment)
    draft.move("lora_dropout", f"adapter.{plugin}.lora_dropout")
    targets, comment = draft.take("lora_target")
    names: Any = [name.strip() for name in targets.split(",")] if isinstance(targets, str) else targets
    draft.set(f"adapter.{plugin}.target_modules", "all-linear" if names == ["all"] else names, comment)
    draft.move("use_rslora", f"adapter.{plugin}.use_rslora")
    if start:
        draft.set(f"adapter.{plugin}.init_lora_weights", start, "pissa_iter")
    if ratio := draft.take("loraplus_lr_ratio")[0]:
        draft.set("adapter.loraplus.lr_ratio", float(ratio), "loraplus_lr_ratio")


def _variant(draft: Draft) -> tuple[str, str]:
    """Return the plugin of LoRA's variant, and the value of its `init_lora_weights`, if it has one."""
    dora, pissa = draft.take("use_dora")[0], draft.take("pissa_init")[0]
    iterations = draft.take("pissa_iter")[0]
    if dora and pissa:
        raise UsageError(
            "use_dora and pissa_init are both true\nwhy: neoplug has no such adapter\nfix: set one of them"
        )
    if pissa:
        return "pissa", "pissa" if iterations == -1 else f"pissa_niter_{iterations}"
    return ("dora" if dora else "lora"), ""
