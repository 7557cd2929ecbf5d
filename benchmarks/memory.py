"""How well a plan foretells memory: its peak of tensors, against that of real steps, on a CPU.

    python benchmarks/memory.py           measures all combinations; resumes memory.json next to this file
    python benchmarks/memory.py --quick   two of them; writes nothing

Models are random Llamas of three sizes. Each combination is planned, and then trained for two steps of the same recipe
with a tracker of storages; memory that a saved adapter's copy needs before training is left out of both.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from neoplug import recipe as recipes
from neoplug.environment.info import versions
from neoplug.files import write_atomically
from neoplug.models.quiet import quiet
from neoplug.runs.measured_steps import measure_steps
from neoplug.runs.plan import plan
from neoplug.testing.families import tokenizer

STORED = Path(__file__).with_name("memory.json")
SIZES = {"small": (2, 64), "medium": (4, 128), "large": (8, 256)}  # layers, hidden size
COMBINATIONS: dict[str, tuple[str, ...]] = {
    "lora": (),
    "lora, bfloat16": ("student.dtype=bfloat16", "teacher.dtype=bfloat16"),
    "full": ("adapter={full: {}}",),
    "dora": ("adapter={dora: {r: 8}}",),
    "vera": ("adapter={vera: {r: 8}}",),
    "ia3": ("adapter={ia3: {}}",),
    "adapted head": ("adapter={lora: {target_modules: [q_proj, lm_head], r: 8}}",),
    "trainable head": ("adapter={lora: {target_modules: [q_proj], modules_to_save: [lm_head], r: 8}}",),
    "checkpointing": ("train.gradient_checkpointing=true",),
    "checkpointing, full": ("train.gradient_checkpointing=true", "adapter={full: {}}"),
    "two micro-batches": ("train.gradient_accumulation_steps=2",),
    "length 64": ("data.max_length=64",),
    "length 1024": ("data.max_length=1024",),
    "padded rows": ("data.packing=false",),
    "cross-entropy, no teacher": ("teacher=null", "loss={cross_entropy: {}}"),
    "jsd and cross-entropy": ("loss={jsd: {}, cross_entropy: {}}",),
    "calibrated": ("loss={jsd: {}, cross_entropy: {calibrate: jsd}}",),
    "taid": ("loss={taid: {}}",),
    "nf4": ("student.load={nf4: {}}", "teacher.load={nf4: {}}"),
    "nf4, checkpointing": ("student.load={nf4: {}}", "train.gradient_checkpointing=true"),
    "top_k cache": ("teacher.cache={top_k: {}}",),
    "states cache": ("teacher.cache={states: {}}",),
    "sampled cache": ("teacher.cache={sampled: {}}",),
    "base as teacher": ("teacher={self: base}",),
    "average as teacher": ("teacher={self: ema, decay: 0.9}",),
    "muon, full": ("adapter={full: {}}", "optimizer={muon: {}}"),
    "adamw_8bit": ("optimizer={adamw_8bit: {}}",),
}
CASES = {f"{name}, {size}": (size, COMBINATIONS[name]) for size in ("small", "medium") for name in COMBINATIONS}
CASES |= {f"{name}, large": ("large", COMBINATIONS[name]) for name in ("lora", "full", "checkpointing", "nf4")}
QUICK = ("lora, small", "states cache, small")


def main() -> None:
    """Measure, store after each combination, and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="two combinations; nothing is written")
    quick = arguments.parse_args().quick
    found: dict[str, Any] = {} if quick or not STORED.exists() else json.loads(STORED.read_text())["cases"]
    with TemporaryDirectory() as folder:
        base = write_inputs(Path(folder))
        for name in QUICK if quick else CASES:
            if name not in found:
                found[name] = compared(base, *CASES[name])
                print(row(name, found[name]), flush=True)
                if not quick:
                    write_atomically(STORED, json.dumps({"versions": versions(), "cases": found}, indent=1) + "\n")
    print(summary(found))
    sys.exit(quick and any(abs(case["foretold"] / case["measured"] - 1) > 0.15 for case in found.values()))


def write_inputs(folder: Path) -> Path:
    """Write models, text and the recipe; return the recipe."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = tokenizer()
    for name, (layers, hidden) in SIZES.items():
        for role, tied in (("student", True), ("teacher", False)):
            torch.manual_seed(0)
            config = LlamaConfig(
                hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=8192, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
            )  # fmt: skip
            with quiet():
                LlamaForCausalLM(config).save_pretrained(folder / name / role)
            tokens.save_pretrained(folder / name / role)
    lines = (f"The number {n} is followed by {n + 1} and preceded by {n - 1}." for n in range(2000))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (folder / "recipe.yaml").write_text(
        "teacher: {model: ./small/teacher, dtype: float32}\nstudent: {model: ./small/student, dtype: float32}\n"
        "data: {source: ./text.jsonl, max_length: 256, packing: true, held_out: 2, train_on: all}\n"
        "adapter: {lora: {r: 8, target_modules: all-linear}}\nloss: {forward_kl: {}}\n"
        "train: {max_steps: 8, per_device_train_batch_size: 4}\n"
    )
    return folder / "recipe.yaml"


def compared(recipe: Path, size: str, changes: tuple[str, ...]) -> dict[str, Any]:
    """Return the foretold and the measured peak of tensors, and what the formula says, in bytes."""
    models = [f"student.model={recipe.parent}/{size}/student"]
    if not any(change.startswith("teacher={") or change == "teacher=null" for change in changes):
        models.append(f"teacher.model={recipe.parent}/{size}/teacher")
    checked = recipes.load(recipe, (*models, *changes))
    planned, quick = plan(checked), plan(checked, quick=True)
    peaks = [found["memory_bytes"]["total"] - found["memory_bytes"]["saved_copy"] for found in (planned, quick)]
    measured = measure_steps(recipes.load(recipe, (*models, *changes)), 2).tensor_bytes
    notes = [line for line in planned["warnings"] if "on shapes" in line]
    return {"foretold": peaks[0], "formula": peaks[1], "measured": measured, "notes": notes}


def row(name: str, case: dict[str, Any]) -> str:
    """Return a row of the table."""
    measured, shares = case["measured"], [case[key] / case["measured"] for key in ("foretold", "formula")]
    note = " (by the formula)" if case["notes"] else ""
    return f"| {name} | {measured / 2**20:,.1f} | {shares[0]:.3f}{note} | {shares[1]:.2f} |"


def summary(found: dict[str, Any]) -> str:
    """Return the whole table, and how far the plans are off."""
    off = sorted(abs(case["foretold"] / case["measured"] - 1) for case in found.values())
    formula = sorted(abs(case["formula"] / case["measured"] - 1) for case in found.values())
    head = "| combination | measured, MiB | foretold / measured | formula / measured |\n|---|---|---|---|"
    lines = [row(name, case) for name, case in found.items()]
    within = sum(value <= 0.15 for value in off)
    tail = (
        f"{within} of {len(off)} within 15 %; off by {off[len(off) // 2]:.1%} in the median and {off[-1]:.1%} at most"
    )
    return "\n".join(
        [head, *lines, "", f"{tail}; the formula by {formula[len(formula) // 2]:.0%} and {formula[-1]:.0%}"]
    )


if __name__ == "__main__":
    main()
