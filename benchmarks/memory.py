"""How well a plan foretells memory: its peak of tensors, against that of real steps, on a CPU.

    python benchmarks/memory.py           measures all combinations; resumes memory.json next to this file
    python benchmarks/memory.py --quick   two of them; writes nothing

Models are random Llamas of three sizes, and the packaged SmolLM2-135M-Instruct with a cut of itself. Each combination
is planned, and then trained for two steps of the same recipe with a tracker of storages, on two ranks where it is
sharded or copied; the larger rank counts. Memory that is needed before training only is left out of both.
"""

import argparse
import json
import multiprocessing
import os
import socket
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

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
QUANTISED = {
    "int8": ("student.load={int8: {}}", "teacher.load={int8: {}}"),
    "int8, checkpointing": ("student.load={int8: {}}", "train.gradient_checkpointing=true"),
}
ON_TWO_RANKS = {
    "lora": (),
    "lora, base": ("train.shard=base",),
    "adapted head, base": ("train.shard=base", "adapter={lora: {target_modules: [q_proj, lm_head], r: 8}}"),
    "checkpointing, base": ("train.shard=base", "train.gradient_checkpointing=true"),
    "states cache, base": ("train.shard=base", "teacher.cache={states: {}}"),
    "full": ("adapter={full: {}}",),
    "full, full": ("train.shard=full", "adapter={full: {}}"),
    "full, checkpointing, full": ("train.shard=full", "adapter={full: {}}", "train.gradient_checkpointing=true"),
}
PACKAGED = {
    "length 128": ("data.max_length=128",),
    "length 256, two rows": ("train.per_device_train_batch_size=2",),
    "length 512": ("data.max_length=512",),
    "length 512, two rows, checkpointing": (
        "data.max_length=512", "train.per_device_train_batch_size=2", "train.gradient_checkpointing=true",
    ),
    "full, checkpointing": ("adapter={full: {}}", "train.gradient_checkpointing=true"),
    "nf4": ("student.load={nf4: {}}", "teacher.load={nf4: {}}"),
    "int8": ("student.load={int8: {}}", "teacher.load={int8: {}}"),
    "top_k cache": ("teacher.cache={top_k: {}}",),
    "states cache, length 512": ("teacher.cache={states: {}}", "data.max_length=512"),
    "base as teacher": ("teacher={self: base}",),
}  # fmt: skip
CASES = {f"{name}, {size}": (size, COMBINATIONS[name]) for size in ("small", "medium") for name in COMBINATIONS}
CASES |= {f"{name}, large": ("large", COMBINATIONS[name]) for name in ("lora", "full", "checkpointing", "nf4")}
CASES |= {f"{name}, {size}": (size, QUANTISED[name]) for size in ("small", "medium") for name in QUANTISED}
CASES |= {f"two ranks: {name}, {size}": (size, ON_TWO_RANKS[name]) for size in SIZES for name in ON_TWO_RANKS}
CASES |= {f"SmolLM2-135M: {name}": ("", PACKAGED[name]) for name in PACKAGED}
QUICK = ("lora, small", "states cache, small")
RECIPE = "llm_neo_tiny"  # of the packaged model


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
                found[name] = compared(base, *CASES[name], ranks=2 if name.startswith("two ranks") else 1)
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


def compared(recipe: Path, size: str, changes: tuple[str, ...], ranks: int) -> dict[str, Any]:
    """Return the foretold and the measured peak of a rank's tensors, and what the formula says, in bytes.

    size  of the random models; empty: those of `RECIPE`
    """
    models = [f"student.model={recipe.parent}/{size}/student"] if size else []
    if size and not any(change.startswith("teacher={") or change == "teacher=null" for change in changes):
        models.append(f"teacher.model={recipe.parent}/{size}/teacher")
    load = partial(recipes.load, recipe if size else RECIPE, (*models, *changes))
    with patch.dict(os.environ, {} if ranks == 1 else {"WORLD_SIZE": str(ranks)}):
        planned, quick = plan(load()), plan(load(), quick=True)
    peaks = [found["memory_bytes"]["total"] - found["memory_bytes"]["at_start"] for found in (planned, quick)]
    measured = measure_steps(load(), 2).tensor_bytes if ranks == 1 else on_ranks(ranks, load)
    notes = [line for line in planned["warnings"] if "on shapes" in line]
    return {"foretold": peaks[0], "formula": peaks[1], "measured": measured, "notes": notes}


def on_ranks(number: int, load: Any) -> int:
    """Return the bytes that two steps measure on the rank with the most."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    with ProcessPoolExecutor(number, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as ranks:
        return max(ranks.map(partial(of_rank, shared, load), range(number)))


def of_rank(shared: dict[str, str], load: Any, rank: int) -> int:
    """Return what one of several ranks measures."""
    os.environ.update(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    return measure_steps(load(), 2).tensor_bytes


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
