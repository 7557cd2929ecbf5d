"""Whether a student that learns from 40 bytes per token ends as the one of the teacher's model: five seeds of each.

    python benchmarks/teacher_seeds.py FOLDER    runs llm_neo_tiny ten times in FOLDER, resumed where it was stopped;
                                                 writes teacher_seeds.json next to this file

Prints the held-out forward KL of each run, and the 95 % t interval of the mean of the paired differences, as a share of
the mean of the runs with the teacher's model.
"""

import argparse
import json
import subprocess
import sys
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

SEEDS = 5
T = 2.776  # 97.5 % quantile of Student's t with 4 degrees of freedom
KINDS = {"live": [], "sampled": ["teacher.cache={sampled: {bytes: 40}}"]}
STORED = Path(__file__).with_suffix(".json")


def forward_kl(folder: Path, seed: int, kind: str) -> float:
    """Return the held-out forward KL, in nats, of a run that is finished first if it is not."""
    output = folder / f"{kind}-{seed}"
    if not (output / "result.json").exists():
        command = [sys.executable, "-m", "neoplug", "run", "llm_neo_tiny", f"seed={seed}", *KINDS[kind]]
        command += ["--output", str(output), *(["--resume"] if output.exists() else [])]
        subprocess.run(command, check=True)
    result = json.loads((output / "result.json").read_text(encoding="utf-8"))
    return float(result["after"]["forward_kl"])


def interval(found: dict[str, list[float]]) -> tuple[float, float]:
    """Return the ends of the interval, as shares of the mean of the live runs."""
    differences = [ours - theirs for ours, theirs in zip(found["sampled"], found["live"], strict=True)]
    half = T * stdev(differences) / sqrt(SEEDS)
    low, high = mean(differences) - half, mean(differences) + half
    return low / mean(found["live"]), high / mean(found["live"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where the runs are")
    parser.add_argument("--quick", action="store_true", help="print what is stored, and run nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        print(STORED.read_text(encoding="utf-8") if STORED.exists() else "not measured")
        return
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in range(SEEDS):
        for kind, values in found.items():
            values.append(forward_kl(arguments.folder, seed, kind))
            print(f"seed {seed}, {kind}: {values[-1]:.4f} nats", flush=True)
    low, high = interval(found)
    STORED.write_text(json.dumps({"forward_kl": found, "interval": [low, high]}, indent=2) + "\n", encoding="utf-8")
    print(f"difference {low:+.2%} to {high:+.2%}")


if __name__ == "__main__":
    main()
