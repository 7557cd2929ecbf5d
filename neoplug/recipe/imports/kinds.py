"""The kinds of configurations that can be imported, and how each is recognised by its keys."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neoplug.errors import UsageError, did_you_mean
from neoplug.recipe.imports import llama_factory, trl
from neoplug.recipe.imports.arguments import IGNORED
from neoplug.recipe.imports.draft import Draft
from neoplug.recipe.source import read_file
from neoplug.recipe.yaml_reader import read


@dataclass(frozen=True)
class Kind:
    """A kind of configuration.

    project   its project, in comments
    convert   fills a draft
    defaults  the project's defaults of keys
    own       keys that only this kind has
    """

    project: str
    convert: Callable[[Draft], None]
    defaults: Mapping[str, Any]
    own: frozenset[str] = field(default_factory=frozenset)


KINDS = {
    "llama-factory": Kind(
        "LLaMA-Factory",
        llama_factory.sft,
        llama_factory.DEFAULTS,
        frozenset(["cutoff_len", "dataset", "finetuning_type", "lora_rank", "lora_target", "stage", "template"]),
    ),
    "trl-sft": Kind("TRL", trl.sft, trl.SFT_DEFAULTS, frozenset(["assistant_only_loss", "completion_only_loss"])),
    "trl-gkd": Kind("TRL", trl.gkd, trl.GKD_DEFAULTS, frozenset(["max_new_tokens", "seq_kd", "use_fused_linear_loss"])),
    "trl-distillation": Kind(
        "TRL",
        trl.distillation,
        trl.DISTILLATION_DEFAULTS,
        frozenset(["loss_add_tail", "loss_top_k", "max_completion_length", "num_generations", "reverse_kl_top_1_mode"]),
    ),
}
WITH_TEACHER = frozenset(["beta", "lmbda", "teacher_model_name_or_path", "temperature"])


def import_recipe(file: Path, kind: str | None) -> tuple[str, list[str]]:
    """Return a configuration as a recipe with comments, and what has to be decided or has no counterpart.

    kind  one of KINDS; None: recognised by its keys
    Raises UsageError where it is no map, of no known kind, or asks for what neoplug does not have.
    """
    tree = read(read_file(file, str(file)))
    if tree.problems or not isinstance(tree.values, dict):
        reason = tree.problems[0].what if tree.problems else "it is no map of keys"
        raise UsageError(f"{file} cannot be imported: {reason}")
    given = dict(tree.values)
    chosen = KINDS[_known(kind)] if kind else KINDS[recognised(given, file)]
    draft = Draft(chosen.project, given, chosen.defaults)
    chosen.convert(draft)
    return draft.text(IGNORED), [*draft.open, *draft.without_counterpart(IGNORED)]


def recognised(given: Mapping[str, Any], file: Path) -> str:
    """Return the kind of a configuration. Raises UsageError where its keys do not decide."""
    found = [name for name, kind in KINDS.items() if kind.own & given.keys()]
    if not found and "dataset_name" in given and not WITH_TEACHER & given.keys():
        found = ["trl-sft"]
    if len(found) != 1:
        what = f"has keys of {' and '.join(found)}" if found else "has no key that only one kind has"
        raise UsageError(
            f"{file} {what}\nwhy: kinds have other defaults for the same keys\nfix: --from {', or '.join(KINDS)}"
        )
    return found[0]


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise UsageError(f"there is no kind {kind}{did_you_mean(kind, KINDS)}\nfix: one of {', '.join(KINDS)}")
    return kind
