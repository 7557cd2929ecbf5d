"""Draws the losses of a run, one curve per loss, as an SVG.

    python benchmarks/loss_curves.py RUN FILE.svg          RUN is a run directory with a result
    python benchmarks/loss_curves.py RUN FILE.svg --quick  draws and writes nothing

Thin lines are the training losses of each step, thick lines their mean over 10 steps. Dots are the same losses on
held-out text before and after training; a dashed line is the teacher's loss, for losses that it has.
"""

import argparse
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

WINDOW = 10  # steps of the running mean
COLOURS = ("#1f77b4", "#e07000", "#2ca02c", "#9467bd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("file", type=Path, help="the SVG to write")
    parser.add_argument("--quick", action="store_true", help="draw and write nothing")
    arguments = parser.parse_args()
    lines = (arguments.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    result = json.loads((arguments.run / "result.json").read_text(encoding="utf-8"))
    picture = draw([json.loads(line) for line in lines], result)
    if not arguments.quick:
        arguments.file.write_bytes(picture)


def draw(metrics: list[dict[str, Any]], result: dict[str, Any]) -> bytes:
    """Return the SVG of a run from the lines of its metrics.jsonl and its result.json."""
    steps = np.array([line["step"] for line in metrics])
    with mpl.rc_context({"svg.hashsalt": "neoplug", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        axes = figure.subplots()
        for name, colour in zip(metrics[0]["losses"], COLOURS, strict=False):
            values = np.array([line["losses"][name] for line in metrics])
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(*running_mean(steps, values), color=colour, linewidth=1.8, label=f"{name}, training")
            ends = [result[when].get(name) for when in ("before", "after")]
            if None not in ends:
                axes.plot(
                    [0, steps[-1]], ends, "o", color=colour, markeredgecolor="white", label=f"{name}, held out"
                )  # fmt: skip
            if (own := (result.get("teacher") or {}).get(name)) is not None:
                axes.axhline(own, color=colour, linewidth=0.8, linestyle="--", label=f"{name} of the teacher, held out")
        axes.set(xlabel="optimizer step", ylabel="nats per answer token", xlim=(-2, steps[-1] + 2), ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, ncols=2)
        file = BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return file.getvalue()


def running_mean(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the means over windows of WINDOW steps, each at the middle of its window."""
    window = np.ones(min(WINDOW, len(values))) / min(WINDOW, len(values))
    return np.convolve(steps, window, "valid"), np.convolve(values, window, "valid")


if __name__ == "__main__":
    main()
