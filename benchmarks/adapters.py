"""The cost of each adapter relative to plain LoRA: time and memory of a step, parameters, bytes on disk, start.

    python benchmarks/adapters.py               every installed adapter; writes adapters.json next to this file
    python benchmarks/adapters.py --only NAME   adds or replaces this one's row; may be given several times
    python benchmarks/adapters.py --quick       two adapters on a tiny random model; writes nothing

The student is the packaged SmolLM2-135M as `llm_neo_tiny` cuts it, in float32, on rows of 256 tokens of Python's
documentation, one row a step. A step is neoplug's own, with cross-entropy alone: a teacher would add the same to all.
Each adapter has no options, and a separate process; a process with plain LoRA runs with it, and the two take
steps in turns. `ratio` is the median of an adapter's time over LoRA's in the same turn, with the lowest and highest;
`lora` itself is measured in the same way, and shows how much is noise. Memory is the most that was resident in a step
above the loaded base: adapter, optimizer, activations, gradients.
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
PROCESSES = multiprocessing.get_context("forkserver")  # each begins with everything imported, and nothing else
IMPORTED = ["neoplug.runs.trainer", "peft", "bitsandbytes", "transformers.models.llama.modeling_llama", "datasets"]
BESIDE = "lora"
ROUNDS = 5
QUICK = ("dora", "ia3")  # in addition to LoRA, each in a process; importing takes longer than the rest


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="two adapters, a tiny model; writes nothing")
    arguments.add_argument("--only", action="append", metavar="NAME", help="only this; may be given several times")
    arguments.add_argument("--rounds", type=int, default=ROUNDS, help="turns, after one that is not counted")
    chosen = arguments.parse_args()
    os.environ["GOMP_SPINCOUNT"] = "0"  # threads that spin while they wait slow down other processes
    PROCESSES.set_forkserver_preload(IMPORTED)
    names = chosen.only or (QUICK if chosen.quick else adapters())
    if chosen.quick:
        print(json.dumps(list(quickly(names)), indent=1))
        return
    for row in measured(names, chosen.rounds, {}):
        store(row)
        print(json.dumps(row), file=sys.stderr, flush=True)


def adapters() -> dict[str, type]:
    """Return {name: class} of neoplug's own adapters."""
    classes = {entry.name: entry.load() for entry in installed() if entry.package == "neoplug"}
    return {name: cls for name, cls in sorted(classes.items()) if "add_adapter" in answered(cls)}


def store(row: dict[str, Any]) -> None:
    """Put a row in the place of the adapter's earlier one; rows of adapters that are gone go."""
    earlier = json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.exists() else []
    rows = {each["adapter"]: each for each in [*earlier, row]}
    found = {"command": "python benchmarks/adapters.py", "rows": [rows[name] for name in adapters() if name in rows]}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def quickly(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield rows of a tiny model; all processes begin at once, since importing takes longer than the rest."""
    from neoplug.testing.families import make

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.jsonl")
        text.write_text("".join(json.dumps({"text": f"{number} and " * 80}) + "\n" for number in range(9)))
        tiny = {"student": {"model": str(make("llama", Path(folder, "model"))), "prepare": {}}}
        yield from measured(names, 1, tiny | {"data": {"source": str(text)}}, at_once=True)


def measured(names: Iterable[str], rounds: int, changes: dict[str, Any], *, at_once: bool = False) -> Iterator[Any]:
    """Yield the row of each adapter; one that fails is reported and left out."""
    reference = Arm(BESIDE, changes)
    arms: Iterable[Arm] = (Arm(name, changes) for name in names)
    arms = list(arms) if at_once else arms
    reference.line.recv()
    for arm in arms:
        try:
            yield compared(arm, reference, rounds)
        except (EOFError, ConnectionError):
            print(f"{arm.name} ended on its way and has no row", file=sys.stderr)
    reference.end()


class Arm:
    """A process that trains one adapter; it takes a step on each request. Raises EOFError where it ended."""

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
        """Let the process save its adapter and end; return what it sends then."""
        self.line.send(False)
        answer = self.line.recv()
        self.process.join()
        return dict(answer)


def compared(arm: Arm, reference: Arm, rounds: int) -> dict[str, Any]:
    """Return an adapter's row: both processes take steps in turns, the first of which is not counted."""
    began = arm.line.recv()
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
        **began,
        **arm.end(),
        "machine": machine(),
    }


if __name__ == "__main__":
    main()
