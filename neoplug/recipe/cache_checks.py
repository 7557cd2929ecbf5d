"""Checks of `teacher.cache`: one kind, and no plugin that reads more of the teacher than this kind stores."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from neoplug.errors import Problem
from neoplug.recipe.plugin_checks import NamedPlugin
from neoplug.registry import Entry, answered, installed
from neoplug.registry.teacher_reads import LEVELS, is_served, reads_teacher, serves

SECTION = "teacher.cache"
_WORDS = {
    "linear": "a sample of the teacher's distribution",
    "buckets": "the teacher's most probable tokens and the mass of all others",
    "full": "the teacher's whole distribution",
}


def cache_problems(named: list[NamedPlugin], references: list[NamedPlugin]) -> Iterator[Problem]:
    """Yield a problem for each plugin of a recipe that does not work with its `teacher.cache`.

    named       the plugins that the recipe names
    references  losses that others are calibrated to
    """
    kinds = [plugin for plugin in named if plugin.section == SECTION and plugin.instance is not None]
    encoding = ["encode_teacher" in answered(kind.cls) for kind in kinds]
    if any(encoding) and not all(encoding):  # two that encode answer the same hook, which is reported there
        names = " and ".join(kind.name for kind in kinds)
        yield Problem(
            f"`teacher.cache` names both {names}", "the teacher's output is read from one", "keep one", kinds[1].path
        )
    for plugin in named if kinds else ():
        yield from _probe_problems(plugin)
    if encoding == [True]:  # else its folder says what was stored
        yield from _wrong_declaration(kinds[0])
        for plugin in [*named, *references]:
            yield from unserved(plugin, kinds[0].instance, kinds[0].entry)


def _wrong_declaration(kind: NamedPlugin) -> Iterator[Problem]:
    """Yield a problem for a kind whose `serves` is no level of what is read."""
    declared = getattr(kind.instance, "serves", None)
    if declared not in (None, *LEVELS[1:]):
        what = f"`{kind.name}` serves {declared!r}, and a kind of cache serves {', '.join(LEVELS[1:])}"
        yield Problem(what, "it says which losses can be trained from the cache", "correct its `serves`", kind.path)


def _probe_problems(plugin: NamedPlugin) -> Iterator[Problem]:
    """Yield a problem for a probe that compares the student with a teacher in memory."""
    hook = answered(plugin.cls).get("on_evaluate")
    if hook and "teacher" in hook.signature.parameters:
        what = f"the probe `{plugin.name}` compares the student with the teacher, and `teacher.cache` loads no teacher"
        why = "what is stored are its outputs for the recipe's own text; a probe runs the model, also on other text"
        yield Problem(what, why, "leave the probe out, or leave `cache` out", plugin.path)


def unserved(plugin: NamedPlugin, kind: Any, entry: Entry) -> Iterator[Problem]:
    """Yield a problem for a loss or token weight that reads more than a kind of cache serves.

    kind, entry  the instance that encodes the teacher, and where it is from
    """
    noun = {"loss": "loss", "token_weights": "token weight"}.get(plugin.section)
    if noun is None or plugin.instance is None or is_served(reads := reads_teacher(plugin.instance), kind):
        return
    ways = [f"`teacher.cache: {{{name}: {{}}}}`" for name in _kinds_that_serve(plugin.instance, entry)]
    ways += ["temperature 1"] if _is_served_at_temperature_1(plugin.instance, kind) else []
    ways += ["a teacher in memory, without `cache`"]
    what = f"the {noun} `{plugin.name}` reads {_WORDS[reads]}, but `{entry.name}` stores {_WORDS[serves(kind)]}"
    why = "what is not stored would have to be invented, and the student would learn it"
    yield Problem(what, why, f"take {' or '.join(ways)}", plugin.path)


def _kinds_that_serve(plugin: Any, entry: Entry) -> list[str]:
    """Return the names of the kinds, of the same package as `entry`, that serve what a plugin reads."""
    package = entry.target.partition(":")[0].partition(".")[0]
    beside = [] if entry.file else [other for other in installed() if other.target.startswith(f"{package}.")]
    classes = {other.name: other.load() for other in beside}
    return [
        name
        for name, cls in classes.items()
        if "encode_teacher" in answered(cls) and is_served(reads_teacher(plugin), cls)
    ]


def _is_served_at_temperature_1(plugin: Any, kind: Any) -> bool:
    if getattr(plugin, "temperature", 1) == 1:
        return False
    return is_served(reads_teacher(replace(plugin, temperature=1.0)), kind)
