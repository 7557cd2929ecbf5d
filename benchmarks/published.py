"""Measure published recipes at the scale tiny with several seeds, and write recipes/published/tiny.json.

The file has recipe -> metric -> seed -> value on held-out text after training; `neoplug run NAME --scale tiny` has the
distribution as its target. A recipe that the file has already is not measured again.
"""

import json
import tempfile
from pathlib import Path

from neoplug import recipe as recipes
from neoplug.recipe.scale import at_scale
from neoplug.runs.execute import execute
from neoplug.runs.progress import Silent

FILE = Path(__file__).parents[1] / "recipes" / "published" / "tiny.json"
NAMES = ("llm_neo/neo", "todi/tinyllama_llama2", "gkd/trl_lora", "distillm/openllama2_3b",
         "torchtune/kd_untuned_teacher")  # fmt: skip
METRICS = ("forward_kl", "cross_entropy")
SEEDS = range(1, 6)


def measure(name: str, seed: int) -> dict[str, float]:
    """Return the metrics after a run of a recipe with a seed."""
    with tempfile.TemporaryDirectory() as folder:
        checked = recipes.load(name, [f"seed={seed}"], at_scale(name, "tiny"))
        result = execute(checked, Path(folder, "run"), False, Silent())
    return {metric: result["after"][metric] for metric in METRICS}


def main() -> None:
    found = json.loads(FILE.read_text(encoding="utf-8"))
    for name in (f"published/{name}" for name in NAMES):
        if name not in found:
            runs = {str(seed): measure(name, seed) for seed in SEEDS}
            found[name] = {metric: {seed: run[metric] for seed, run in runs.items()} for metric in METRICS}
            FILE.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
