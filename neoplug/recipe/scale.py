"""Published recipes at a small scale: other models, data and steps, the same method."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from neoplug.errors import UsageError, did_you_mean
from neoplug.files import read_json
from neoplug.recipe.source import from_values, locate, read_file, read_recipe, shipped
from neoplug.recipe.train import Train
from neoplug.recipe.tree import Tree
from neoplug.recipe.yaml_reader import read

PREFIX = "published/"
SCALES = ("tiny",)


def at_scale(source: str | Path, scale: str) -> Tree:
    """Return what a scale changes of a published recipe, as a recipe that extends it; `load` takes it as its changes.

    The learning rate becomes a multiple of the recipe's, and the targets the distribution that was measured at this
    scale. Raises UsageError where the recipe is not a published one, or there is no such scale.
    """
    path, name = _published(source)
    if scale not in SCALES:
        raise UsageError(f"there is no scale {scale}{did_you_mean(scale, SCALES)}\nfix: --scale {' or '.join(SCALES)}")
    folder = path.parents[1]
    given = read(read_file(folder / f"{scale}.yaml", f"{scale}.yaml")).values
    original = read_recipe(path, name, (), from_values({}))
    common, own = given["recipe"], given["recipes"].get(name, {})
    changes = {section: {**common.get(section, {}), **own.get(section, {})} for section in {**common, **own}}
    if original.get(("teacher",)) is None:
        del changes["teacher"]
    rate = original.get(("train", "learning_rate")) or Train.model_fields["learning_rate"].default
    changes["train"]["learning_rate"] = rate * given["learning_rate"]
    measured = read_json(folder / f"{scale}.json", "install neoplug again").get(name, {})
    targets = dict.fromkeys(original.get(("reference", "targets")) or {})  # null: those of the full scale are removed
    targets |= {metric: _distribution(values) for metric, values in measured.items()}
    changes["reference"] = {"scale": scale, "targets": targets}
    return from_values(changes, f"--scale {scale}", f"--scale {scale}", folder)


def _published(source: str | Path) -> tuple[Path, str]:
    """Return the file and the name of a published recipe. Raises UsageError for another."""
    path, _ = locate(source, Path.cwd())
    name = next((name for name, file in shipped().items() if file == path), "")
    if name.startswith(PREFIX):
        return path, name
    raise UsageError(
        f"--scale does not support {source}\n"
        "why: it replaces the models, data and steps of a published recipe\n"
        "fix: set them by overrides, or name a recipe of `neoplug recipes` that begins with published/"
    )


def _distribution(values: dict[str, float]) -> dict[str, Any]:
    """Return the target of a metric that was measured with several seeds."""
    return {"mean": mean(values.values()), "sd": stdev(values.values()), "n": len(values)}
