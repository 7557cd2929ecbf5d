"""Hugging Face's own Trainer with peft, on the same batches: the same loss, gradient norm and rate at every step.

Trainer reads padded rows with a mask, neoplug one row without; Trainer has its own division by the answer tokens.
"""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

# raised within peft
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v(6|ersion):FutureWarning")

STEPS, WARMUP, RATE, DECAY, CLIP = 9, 3, 2e-2, 0.05, 2.1
ROWS, ACCUMULATION, HELD_OUT = 2, 3, 6  # 18 rows for training: Trainer needs a whole number of steps per epoch


def as_theirs(documents):
    """Return padded input_ids, mask and labels with -100 where nothing is scored."""
    ids = [torch.from_numpy(d.input_ids) for d in documents]
    labels = [torch.from_numpy(d.input_ids).masked_fill(~torch.from_numpy(d.loss_mask), -100) for d in documents]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


class TrainerOnBatches(Trainer):
    """Trainer with the given micro-batches in place of its data loader."""

    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=None, shuffle=False)


def theirs(model_path, options, start, micro_batches, folder, schedule):
    """Return Trainer's lines and its final weights."""
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **options))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable.keys() == start.keys()
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(start[name])
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, learning_rate=RATE, lr_scheduler_type=schedule, warmup_steps=WARMUP,
        max_grad_norm=CLIP, gradient_accumulation_steps=ACCUMULATION, weight_decay=DECAY, optim="adamw_torch",
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = TrainerOnBatches(model, arguments, train_dataset=[as_theirs(each) for each in micro_batches])
    trainer.train()
    return [line for line in trainer.state.log_history if "grad_norm" in line], trainable


@pytest.mark.parametrize(
    ("packing", "schedule"), [(False, "cosine"), pytest.param(True, "linear", marks=pytest.mark.slow)]
)
def test_lora_follows_trainers_curve(run, tiny_student, tiny_chat, tmp_path, packing, schedule):
    options = {"r": 4, "lora_alpha": 12}
    ours = run(
        student={"model": str(tiny_student), "dtype": "float32"},
        data={"source": str(tiny_chat), "held_out": HELD_OUT, "packing": packing, "max_length": 300},
        adapter={"lora": options},
        loss={"cross_entropy": {}},
        optimizer={"adamw": {"weight_decay": DECAY}},
        train={
            "max_steps": STEPS, "learning_rate": RATE, "lr_scheduler_type": schedule, "warmup_steps": WARMUP,
            "max_grad_norm": CLIP, "per_device_train_batch_size": ROWS,
            "gradient_accumulation_steps": ACCUMULATION if not packing else 1,
        },
    )  # fmt: skip
    micro_batches = [documents for step in range(STEPS) for documents in ours.documents(step)]
    if packing:  # both give the same step for any split of its documents
        micro_batches = [part for documents in micro_batches for part in three_parts(documents)]
    lines, weights = theirs(tiny_student, options, ours.start, micro_batches, tmp_path / "theirs", schedule)

    assert len(lines) == len(ours.lines) == STEPS >= 8
    counts = [sum(d.answer_tokens for d in documents) for documents in micro_batches]
    assert len(set(counts)) > STEPS
    for mine, line in zip(ours.lines, lines, strict=True):
        for key in ("loss", "grad_norm", "learning_rate"):
            assert mine[key] == pytest.approx(line[key], rel=3e-5, abs=1e-12), (mine["step"], key)
    assert ours.lines[0]["learning_rate"] == 0
    assert ours.lines[-1]["loss"] < 0.9 * ours.lines[0]["loss"]
    norms = [line["grad_norm"] for line in lines]
    assert min(norms) < CLIP < max(norms)  # some steps are clipped, others are not
    ends = load_file(ours.path / "adapter" / "adapter_model.safetensors")
    for name, weight in weights.items():
        torch.testing.assert_close(ends[name.replace(".default", "")], weight.detach(), rtol=1e-3, atol=1e-4)
        assert (weight - ours.start[name]).abs().max() > 1e-2


def three_parts(documents):
    assert len(documents) >= ACCUMULATION
    return [documents[:1], documents[1:-1], documents[-1:]]
