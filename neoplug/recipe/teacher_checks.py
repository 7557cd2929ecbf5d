"""Checks of the recipe's `teacher`: what it is, which keys fit that, and whether the adapter does."""

from collections.abc import Iterator
from typing import Any

from neoplug.errors import Path as Key
from neoplug.errors import Problem
from neoplug.recipe.plugin_checks import FoundPlugins
from neoplug.recipe.schema import VALID_WITH_SELF, Teacher, fields_of
from neoplug.recipe.tree import Tree
from neoplug.registry import answered
from neoplug.registry.adapter_traits import AdapterTraits

TEACHER: Key = ("teacher",)
WHY_NOT_WITH_SELF = {
    "cache": "an average changes with each step, and what is stored of a base is that of `teacher.model`",
    "max_segmentation_difference": "the teacher's tokenizer is the student's",
}


def teacher_problems(tree: Tree, found: FoundPlugins) -> Iterator[Problem]:
    """Yield the mistakes in `teacher`; two keys that both set what it is are reported elsewhere."""
    given = tree.get(TEACHER)
    if isinstance(given, dict):
        yield from _missing(tree, given, found)
        yield from _keys_of_a_model(given)
        yield from _decay(tree, given)
        yield from _changed_base(given, found)
        yield from _prompts_in_loss(tree, given)


def _missing(tree: Tree, given: dict[str, Any], found: FoundPlugins) -> Iterator[Problem]:
    """Yield a problem where no key sets what the teacher is; a cache does if it was built elsewhere."""
    if any(given.get(key) is not None or tree.is_broken((*TEACHER, key)) for key in ("model", "self")):
        return
    if any("cache_folder" in answered(plugin.cls) for plugin in found.named if plugin.section == "teacher.cache"):
        return
    fix = "name a model, or write `self: base` for the student's own base"
    yield Problem("`model` is missing", "it has no default", fix, (*TEACHER, "model"))


def _keys_of_a_model(given: dict[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each key that is of a model, where the teacher is the student itself."""
    itself = given.get("self")
    if itself is None:
        return
    for key, field in fields_of(Teacher).items():
        if key not in VALID_WITH_SELF and given.get(key, field.default) not in (None, field.default):
            what = f"`{key}` does not go with `self: {itself}`, by which the teacher is the student itself"
            why = WHY_NOT_WITH_SELF.get(key, "the teacher is not loaded again, and `student` says how it is loaded")
            yield Problem(what, why, "leave it out; null removes an inherited one", (*TEACHER, key))


def _decay(tree: Tree, given: dict[str, Any]) -> Iterator[Problem]:
    """Yield a problem for a decay without an average."""
    node = tree.node((*TEACHER, "self"))
    if given.get("decay") is not None and (node is None or node.value == "base"):
        why = "it is the share of an average of the student's weights that a step keeps"
        yield Problem("`decay` has no effect on this teacher", why, "write `self: ema`", (*TEACHER, "decay"))


def _changed_base(given: dict[str, Any], found: FoundPlugins) -> Iterator[Problem]:
    """Yield a problem for an adapter that changes the base which is to be the teacher."""
    for plugin in found.named if given.get("self") == "base" else ():
        why = AdapterTraits.of(plugin.cls).changes_base if "add_adapter" in answered(plugin.cls) else ""
        if why:
            what = f"the student's base cannot be the teacher, since `{plugin.name}` changes it"
            fix = "name another adapter, or the base as `teacher.model`: it is then loaded twice"
            yield Problem(what, why, fix, (*TEACHER, "self"))


def _prompts_in_loss(tree: Tree, given: dict[str, Any]) -> Iterator[Problem]:
    """Yield a problem where the teacher has its own prompt format and the prompts are trained on too."""
    if not given.get("chat_template") or tree.get(("data", "train_on")) != "all":
        return
    what = "the teacher's prompts differ from the student's, but `train_on: all` trains on the prompts too"
    fix = "train_on: answers (or last), or let the teacher read the student's prompts"
    yield Problem(what, "only the answers have the same text for both", fix, (*TEACHER, "chat_template"))
