"""The models of `step.py`: a teacher, and a student with every second layer of it and a LoRA."""

from pathlib import Path
from typing import Any

import torch


def save_models(folder: Path, source: str | None) -> Any:
    """Write `teacher` and `student`; return their tokenizer. Without a source the models are tiny and random: None."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    tokenizer = None
    if source is None:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=200, num_hidden_layers=4, **sizes))
    else:
        from neoplug.models.load import load_tokenizer
        from neoplug.models.resolve import locate

        located = locate(source)
        tokenizer = load_tokenizer(located)
        model = AutoModelForCausalLM.from_pretrained(located.path, dtype=torch.float32)
    tokenizer_here = [] if tokenizer is None else [tokenizer.save_pretrained(folder / name) for name in NAMES]
    model.save_pretrained(folder / "teacher")
    model.model.layers = model.model.layers[::2]
    model.config.num_hidden_layers = len(model.model.layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[::2]
    model.save_pretrained(folder / "student")
    return tokenizer if tokenizer_here else None


NAMES = ("teacher", "student")


def load_models(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the frozen teacher and the student with its adapter; weights are copied into memory, not mapped."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    teacher, student = (AutoModelForCausalLM.from_pretrained(folder / name, dtype=dtype) for name in NAMES)
    torch.manual_seed(0)
    student = get_peft_model(student, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    teacher.eval().requires_grad_(False)
    for model in (teacher, student):
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        model.config.use_cache = False
    return teacher, student.train()


def optimizer_of(student: Any) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0)
