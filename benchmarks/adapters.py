"""The cost of each adapter relative to plain LoRA: step time, memory, parameters, bytes on disk, initialisation time.

    python benchmarks/adapters.py               every installed adapter; writes adapters.json next to this file
    python benchmarks/adapters.py --only NAME   adds or replaces only this row; may be given several times
    python benchmarks/adapters.py --quick       two adapters on a tiny random model; writes nothing

The student is the packaged SmolLM2-135M as `llm_neo_tiny` cuts it, in float32, on rows of 256 tokens of Python's
documentation, one row per step. Steps are those of neoplug's loop, with only cross-entropy: a teacher would add the
same cost to all. Each adapter runs without options in a separate process, and takes turns with a process of plain LoRA.
`ratio` is the median of the adapter's time over LoRA's in the same turn, with the lowest and highest; `lora` itself is
measured in the same way, which shows the noise. Memory is the peak of resident memory in a step above the loaded base:
adapter, optimizer, activations, gradients.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from adapter_arm import work
from step import machine

from neoplug.registry import answered, installed

FILE = Path(__file__).with_suffix(".json")
PROCESSES = multiprocessing.get_context("forkserver")  # each process starts with only the imports done
IMPORTED = ["neoplug.runs.trainer", "peft", "bitsandbytes", "transformers.models.llama.modeling_llama", "datasets"]
REFERENCE = "lora"
ROUNDS = 5
QUICK = ("dora", "ia3")  # few, since each is a process, and importing takes longer than the rest


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="two adapters, a tiny model; writes nothing")
    arguments.add_argument("--only", action="append", metavar="NAME", help="only this; may be given several times")
    arguments.add_argument("--rounds", type=int, default=ROUNDS, help="measured turns, after a warm-up")
    chosen = arguments.parse_args()
    os.environ["GOMP_SPINCOUNT"] = "0"  # threads that spin while waiting slow down other processes
    PROCESSES.set_forkserver_preload(IMPORTED)
    names = chosen.only or (QUICK if chosen.quick else adapters())
    if chosen.quick:
        print(json.dumps(list(measure_tiny(names)), indent=1))
        return
    for row in measure(names, chosen.rounds, {}):
        store(row)
        print(json.dumps(row), file=sys.stderr, flush=True)


def adapters() -> dict[str, type]:
    """Return {name: class} of neoplug's own adapters."""
    classes = {entry.name: entry.load() for entry in installed() if entry.package == "neoplug"}
    return {name: cls for name, cls in sorted(classes.items()) if "add_adapter" in answered(cls)}


def store(row: dict[str, Any]) -> None:
    """Store a row in place of the adapter's earlier one; drop rows of adapters that are not installed any more."""
    earlier = json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.exists() else []
    rows = {each["adapter"]: each for each in [*earlier, row]}
    found = {"command": "python benchmarks/adapters.py", "rows": [rows[name] for name in adapters() if name in rows]}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure_tiny(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield rows measured on a tiny model; all processes start at once, since importing takes longest."""
    from neoplug.testing.families import make

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.jsonl")
        text.write_text("".join(json.dumps({"text": f"{number} and " * 80}) + "\n" for number in range(9)))
        tiny = {"student": {"model": str(make("llama", Path(folder, "model"))), "prepare": {}}}
        yield from measure(names, 1, tiny | {"data": {"source": str(text)}}, at_once=True)


def measure(names: Iterable[str], rounds: int, changes: dict[str, Any], *, at_once: bool = False) -> Iterator[Any]:
    """Yield the row of each adapter; print the name of one that fails."""
    reference = Arm(REFERENCE, changes)
    arms: Iterable[Arm] = (Arm(name, changes) for name in names)
    arms = list(arms) if at_once else arms
    reference.line.recv()
    for arm in arms:
        try:
            yield compare(arm, reference, rounds)
        except (EOFError, ConnectionError):
            print(f"{arm.name} failed and has no row", file=sys.stderr)
    reference.end()


class Arm:
    """A process that trains one adapter, a step per request. Raises EOFError if it has ended."""

    def __init__(self, name: str, changes: dict[str, Any]) -> None:
        self.name = name
        self.line, theirs = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=work, args=(name, changes, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def step(self) -> dict[str, float]:
        """Return seconds, cpu_seconds and peak_bytes of a step."""
        self.line.send(True)
        return dict(self.line.recv())

    def end(self) -> dict[str, Any]:
        """End the process after it has saved its adapter; return {disk_bytes}."""
        self.line.send(False)
        saved = self.line.recv()
        self.process.join()
        return dict(saved)


def compare(arm: Arm, reference: Arm, rounds: int) -> dict[str, Any]:
    """Return an adapter's row; both processes take steps in turns, after a warm-up."""
    initialisation = arm.line.recv()
    turns = [(arm.step(), reference.step()) for _ in range(1 + rounds)][1:]
    ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in turns]
    peaks = [max(each["peak_bytes"] for each in arms) for arms in zip(*turns, strict=True)]
    return {
        "adapter": arm.name,
        "ratio": {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "seconds": median(ours["seconds"] for ours, _ in turns),
        "lora_seconds": median(theirs["seconds"] for _, theirs in turns),
        "cpu_ratio": median(ours["cpu_seconds"] / theirs["cpu_seconds"] for ours, theirs in turns),
        "peak_bytes": peaks[0],
        "lora_peak_bytes": peaks[1],
        **initialisation,
        **arm.end(),
        "machine": machine(),
    }


if __name__ == "__main__":
    main()
