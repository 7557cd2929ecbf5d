"""The time from `neoplug run` to the first step, with warm caches, by part.

    python benchmarks/start.py           SmolLM2-135M teaches its 15-layer cut, as `llm_neo_tiny` does
    python benchmarks/start.py --quick   one start instead of three, without a warm-up

Each round has two processes. One imports the libraries and loads both models with plain transformers and peft: every
trainer needs that time. The other is a run that ends where its first step would begin. Its evaluation before training
is reported separately. `own` is the rest of the run's time: recipe, data, lock, and verification of the models'
layouts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

RECIPE = "llm_neo_tiny"
CHANGES: dict[str, Any] = {"data": {"held_out": 1}, "train": {"max_steps": 2}}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="one start")
    arguments.add_argument("--child", choices=("plain", "run"), help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.child:
        print(json.dumps({"plain": load_without_neoplug, "run": run_to_first_step}[chosen.child]()))
        return
    rounds = [{child: spawn(child) for child in ("plain", "run")} for _ in range(1 if chosen.quick else 4)]
    print_medians(rounds[-3:])


def spawn(child: str) -> dict[str, float]:
    """Return the seconds of each part of a child process."""
    command = [sys.executable, __file__, "--child", child]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def imported() -> float:
    """Import the libraries that a run of this recipe needs; return the seconds."""
    began = perf_counter()
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    return perf_counter() - began


def load_without_neoplug() -> dict[str, float]:
    """Load teacher and student with plain transformers and peft; return the seconds of each part."""
    from neoplug.models.resolve import locate
    from neoplug.recipe import load

    located = locate(load(RECIPE).recipe.student.model)
    seconds = imported()
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    began = perf_counter()
    AutoTokenizer.from_pretrained(located.path)
    for _ in range(2):
        model = AutoModelForCausalLM.from_pretrained(located.path, dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    return {"imports": seconds, "loading": perf_counter() - began}


class FirstStep(Exception):
    """Raised where the first step would begin, to end the run."""


def run_to_first_step() -> dict[str, float]:
    """Run the recipe up to its first step; return the seconds of each part."""
    seconds = {"imports": imported()}
    from neoplug.runs.execute import run
    from neoplug.runs.progress import Silent

    began = {"the recipe": perf_counter()}

    class Clock(Silent):
        def phase(self, text: str) -> None:
            began["evaluation" if text.startswith("evaluating") else text] = perf_counter()

        def started(self, total: int, first: int) -> None:
            began["the first step"] = perf_counter()
            raise FirstStep

    with tempfile.TemporaryDirectory() as folder, suppress(FirstStep):
        run(RECIPE, output=Path(folder, "run"), progress=Clock(), **CHANGES)
    marks = list(began.items())
    for (part, at), (_, then) in pairwise(marks):
        seconds[part] = then - at
    return seconds


def print_medians(rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print the medians over rounds, and neoplug's own time."""
    for part in rounds[0]["run"]:
        print(f"{part:24} {median(one['run'][part] for one in rounds):6.2f} s")
    own = median(
        sum(one["run"].values()) - one["run"]["imports"] - one["run"]["evaluation"] - one["plain"]["loading"]
        for one in rounds
    )
    print(f"{'loading without neoplug':24} {median(one['plain']['loading'] for one in rounds):6.2f} s")
    print(f"{'own':24} {own:6.2f} s")


if __name__ == "__main__":
    main()
