"""neoplug on a GPU, in one command and at most 8 minutes: kernels, tests, and a step compared with other trainers.

    python benchmarks/gpu.py          on a machine with a GPU; writes gpu.json next to this file, after each part
    python benchmarks/gpu.py --quick  the same parts with tiny models on the CPU; writes nothing

    kernels  what needs a GPU, against closed forms in float64 (`gpu_kernels.py`)
    tests    tests/cuda, and those of the fused kernel and of Liger's
    arms     Llama-3.1-8B to Llama-3.2-1B with random weights, LoRA r 64, 4 documents of 2,048 tokens, bfloat16: seconds
             of a step, MFU, and the peak of the memory that torch allocates (`gpu_arm.py`); all arms have 4 rows of one
             document and no padding, and neoplug its layout

A part that takes longer than its budget is ended and reported. A trainer whose package is missing is left out.
Without a GPU the command says so and exits with 2.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

HERE = Path(__file__).parent
SECONDS = 480  # of all parts
ARMS = {
    "limit": "peft",
    "neoplug": "peft",
    "trainer": "transformers",
    "liger": "liger_kernel",
    "gkd": "trl",
    "trl": "trl",
}
QUICK = ("limit", "neoplug", "trainer")
BUDGETS = {"kernels": 60, "tests": 60, "arm": 60}
TESTS = ("tests/cuda", "tests/training/test_fused_tile.py", "tests/plugins/test_liger.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models on the CPU; writes nothing")
    quick = parser.parse_args().quick
    device = "cpu" if quick else gpu()
    if device is None:
        print("benchmarks/gpu.py measures on a GPU, and torch finds none on this machine.", file=sys.stderr)
        raise SystemExit(2)
    run = Run(device, quick)
    mode = ["--quick"] if quick else []
    run.part("kernels", [sys.executable, HERE / "gpu_kernels.py", *mode], BUDGETS["kernels"])
    collect = ["--collect-only"] if quick else []
    run.part("tests", [sys.executable, "-m", "pytest", "-n", "0", "-q", *collect, *TESTS], BUDGETS["tests"])
    for arm, package in ARMS.items():
        if quick and arm not in QUICK:
            continue
        if find_spec(package) is None:
            run.keep(arm, {"left out": f"{package} is not installed"})
        else:
            run.part(arm, [sys.executable, HERE / "gpu_arm.py", run.folder.name, arm, *mode], BUDGETS["arm"])
    print(table(run.found))
    if failed := [name for name in run.found if "failed" in run.found[name]]:
        raise SystemExit(f"failed: {', '.join(failed)}")


def gpu() -> str | None:
    """Return the name of the GPU that torch finds."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


class Run:
    """Runs parts as processes within the time that is left, and writes what they found after each."""

    def __init__(self, device: str, quick: bool) -> None:
        self.device, self.quick, self.started = device, quick, monotonic()
        self.found: dict[str, dict[str, Any]] = {}
        self.folder = tempfile.TemporaryDirectory()

    def part(self, name: str, command: list[Any], budget: float) -> None:
        """Run a part; keep the last line that it prints as JSON, or the last lines of what went wrong."""
        left = min(budget, SECONDS - (monotonic() - self.started)) if not self.quick else 10 * budget
        if left < 5:
            self.keep(name, {"left out": f"the {SECONDS} seconds were over"})
            return
        settings = {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
        began = monotonic()
        try:
            done = subprocess.run(
                command, cwd=HERE.parent, env=os.environ | settings, capture_output=True, text=True, timeout=left
            )
        except subprocess.TimeoutExpired:
            self.keep(name, {"failed": f"it was ended after {left:.0f} seconds"})
            return
        lines = done.stdout.strip().splitlines() or [""]
        if done.returncode:
            self.keep(name, {"failed": "\n".join([*lines[-5:], *done.stderr.splitlines()[-15:]])})
        else:
            answer = json.loads(lines[-1]) if lines[-1].startswith("{") else {"printed": lines[-1]}
            self.keep(name, answer | {"seconds of the part": round(monotonic() - began, 1)})

    def keep(self, name: str, found: dict[str, Any]) -> None:
        """Add what a part found, and write all so far."""
        self.found[name] = found
        print(name, json.dumps(found), file=sys.stderr, flush=True)
        if not self.quick:
            packages = {package: version(package) for package in ("torch", "transformers", "peft")}
            stored = {"command": "python benchmarks/gpu.py", "device": self.device, **packages, "parts": self.found}
            (HERE / "gpu.json").write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the arms as a table in Markdown; an arm without a time has the reason."""
    lines = ["| arm | ms a step (lowest, highest) | / limit | MFU | peak, GiB |", "|---|---|---|---|---|"]
    limit = found.get("limit", {}).get("median")
    for arm in ARMS:
        row = found.get(arm, {"left out": "not with --quick"})
        if "median" not in row:
            lines.append(f"| {arm} | {(row.get('left out') or row.get('failed') or '?').splitlines()[-1]} | | | |")
            continue
        spread = f"{1e3 * row['median']:.0f} ({1e3 * row['lowest']:.0f}, {1e3 * row['highest']:.0f})"
        ratio = f"{row['median'] / limit:.2f}" if limit else ""
        mfu, peak = f"{row['mfu']:.1%}" if row["mfu"] else "", f"{row['peak_bytes'] / 2**30:.1f}"
        lines.append(f"| {arm} | {spread} | {ratio} | {mfu} | {peak} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
