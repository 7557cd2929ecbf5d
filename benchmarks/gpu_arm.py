"""One arm of `gpu.py` in a separate process: `python gpu_arm.py FOLDER ARM [--quick]` prints its times as JSON.

Arms are those of `step_arms.py`, with models of random weights on the GPU, and Liger's loss of hidden states.
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import step_arms
from roofline import RANK, STUDENT, TEACHER, TINY
from step_models import optimizer_of
from step_rows import Rows, row

DOCUMENTS, LENGTH, SMALL = 4, 2048, 16
WARM, STEPS = 3, 10
# Products in 16 bits a second, without sparsity, by data sheet: the first name that the GPU's contains.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}


class Times:
    """Times steps on the device: it ends the process's loop after the last one, with the result printed."""

    def __init__(self, flops: float) -> None:
        self.flops, self.began = flops, 0.0
        self.seconds: list[float] = []

    def begin(self) -> None:
        """Begin a step."""
        synchronize()
        if len(self.seconds) == WARM and step_arms.DEVICE != "cpu":
            torch.cuda.reset_peak_memory_stats()
        self.began = perf_counter()

    def end(self) -> None:
        """End a step; after the last print the result and leave."""
        synchronize()
        self.seconds.append(perf_counter() - self.began)
        if len(self.seconds) < WARM + STEPS:
            return
        taken = self.seconds[WARM:]
        found: dict[str, Any] = {"median": median(taken), "lowest": min(taken), "highest": max(taken)}
        on_gpu = step_arms.DEVICE != "cpu"
        name = torch.cuda.get_device_name() if on_gpu else ""
        peak = next((value for key, value in PEAKS.items() if key in name), None)
        found["mfu"] = self.flops / peak / found["median"] if peak else None
        found["peak_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else 0
        print(json.dumps(found), flush=True)
        raise SystemExit(0)


def synchronize() -> None:
    """Wait for the device."""
    if step_arms.DEVICE != "cpu":
        torch.cuda.synchronize()


def main() -> None:
    folder, arm, quick = Path(sys.argv[1]), sys.argv[2], "--quick" in sys.argv
    step_arms.DEVICE, step_arms.ROW = ("cpu", SMALL) if quick else ("cuda", LENGTH)
    teacher, student = models(quick)
    save_tokenizer(folder / "student")
    rng, length = random.Random(0), step_arms.ROW
    size = teacher.config.vocab_size
    rows: Rows = [[row([rng.randrange(size) for _ in range(length)], 1) for _ in range(DOCUMENTS)] for _ in range(2)]
    KINDS[arm](teacher, student, rows, Times(useful_flops(teacher, student, length)))


def models(quick: bool) -> tuple[Any, Any]:
    """Return the frozen teacher and the student with a LoRA, of random weights, in bfloat16 on a GPU."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from neoplug.models.facts import known_models

    torch.manual_seed(0)
    found, dtype = [], torch.float32 if quick else torch.bfloat16
    for name in (TEACHER, STUDENT):
        config = AutoConfig.for_model(**{**known_models()[name].config, **(TINY if quick else {})})
        with torch.device(step_arms.DEVICE):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        model.config.use_cache = False
        found.append(model.requires_grad_(False))
    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    return found[0].eval(), get_peft_model(found[1], adapter).train()


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer for trainers that require one and read only its special tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


def useful_flops(teacher: Any, student: Any, length: int) -> float:
    """Return the products of a step that any exact objective needs: forward of both, backward, three of the heads.

    Backward takes one product for each frozen weight, and two for each of the adapter. Attention is causal.
    """
    tokens = DOCUMENTS * length

    def backbone(model: Any, adapted: bool) -> tuple[float, float]:
        linear = [
            module for name, module in model.named_modules() if isinstance(module, nn.Linear) and "head" not in name
        ]
        frozen = sum(m.weight.numel() for m in linear if not m.weight.requires_grad)
        trained = sum(m.weight.numel() for m in linear if m.weight.requires_grad)
        config = model.config
        attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * length / 2
        forward = tokens * (2 * (frozen + trained) + attention)
        backward = tokens * (2 * frozen + 4 * trained + 2.5 * attention)
        return forward, backward if adapted else 0.0

    heads = 2 * tokens * teacher.config.vocab_size * (teacher.config.hidden_size + 2 * student.config.hidden_size)
    return sum(backbone(teacher, False)) + sum(backbone(student, True)) + heads


def liger(teacher: Any, student: Any, rows: Rows, times: Times) -> None:
    """Train with Liger's cross-entropy and divergence of hidden states, which computes logits in chunks."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    optimizer, loss = optimizer_of(student), LigerFusedLinearJSDLoss(0.5, 0.5, 0.0)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    for batch in step_arms.endless_batches(rows, times):  # type: ignore[arg-type]
        inputs = {name: tensor.to(step_arms.DEVICE) for name, tensor in step_arms.padded(batch).items()}
        labels = inputs["labels"][:, 1:].reshape(-1)
        with torch.no_grad():
            theirs = teacher.model(inputs["input_ids"]).last_hidden_state[:, :-1].flatten(0, 1)
        with torch.autocast(step_arms.DEVICE, torch.bfloat16, enabled=step_arms.DEVICE != "cpu"):
            ours = student.base_model.model.model(inputs["input_ids"]).last_hidden_state[:, :-1].flatten(0, 1)
            total = loss(ours, student.base_model.model.lm_head.weight, theirs, teacher.lm_head.weight, labels)
        total.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.end()


KINDS: dict[str, Callable[..., None]] = {**step_arms.KINDS, "liger": liger}

if __name__ == "__main__":
    main()
