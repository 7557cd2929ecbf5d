"""Dispatch of hooks to the plugins of one run, in the order of their names in the recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pluggy

from neoplug import hookspecs
from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, blaming
from neoplug.registry.discovery import GROUP
from neoplug.registry.validation import SPECS, class_problems


def path_of(section: str, name: str) -> Key:
    """Return the path of a plugin in a recipe: ("student", "load", NAME) for section "student.load"."""
    return (*section.split("."), name)


@dataclass(frozen=True)
class _Bound:
    """An implementation ready to be called."""

    hook: str
    section: str
    name: str
    label: str  # the name, or section.name where two sections use the same name
    function: Callable[..., Any]
    arguments: Sequence[str]

    def __call__(self, **arguments: Any) -> Any:
        """Call it with the hook's arguments that it takes; `name` is its name in the recipe. Raises PluginError."""
        with blaming(self.label, self.hook):
            return self.function(*[self.name if name == "name" else arguments[name] for name in self.arguments])


class Plugins:
    """The plugins of one run, on a plugin manager of their own; called in the order of their names.

    Built from {section: {name in the recipe: instance}}; sections are the values of `recipe.model.PLUGIN_MAPS`. Raises
    RecipeError for whatever pluggy would pass over in silence: methods named like a hook without `@hookimpl`, unknown
    hooks and arguments, wrappers.
    """

    def __init__(self, sections: Mapping[str, Mapping[str, Any]]) -> None:
        self._sections = {section: dict(plugins) for section, plugins in sections.items()}
        every = sorted((name, section) for section, plugins in self._sections.items() for name in plugins)
        self._refuse(every)
        names = [name for name, _ in every]
        self._labels = {(s, n): n if names.count(n) == 1 else f"{s}.{n}" for n, s in every}
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        for name, section in reversed(every):  # pluggy calls the last registered first
            self.manager.register(self._sections[section][name], name=f"{section}.{name}")
        self.manager.check_pending()
        owners = {f"{section}.{name}": (section, name) for name, section in every}
        self._calls = {hook: self._bind(hook, owners) for hook in SPECS}
        self._by_section: dict[tuple[str, str | None], tuple[_Bound, ...]] = {}

    def _refuse(self, every: list[tuple[str, str]]) -> None:
        problems = []
        for name, section in every:
            for problem in class_problems(type(self._sections[section][name])):
                problems.append(Problem(problem.what, problem.why, problem.fix, path_of(section, name)))
        if problems:
            raise RecipeError(problems)

    def _bind(self, hook: str, owners: Mapping[str, tuple[str, str]]) -> tuple[_Bound, ...]:
        calls = reversed(getattr(self.manager.hook, hook).get_hookimpls())  # pluggy keeps the first to call at the end
        bound = [
            _Bound(hook, *owner, self._labels[owner], call.function, call.argnames)
            for call, owner in ((call, owners[call.plugin_name]) for call in calls)
        ]
        if getattr(SPECS[hook], "answers", "all") == "each loss":  # of those that the recipe names as losses
            return tuple(replace(call, label=call.name) for call in bound if call.section == "loss")
        return tuple(bound)

    def each(self, hook: str, /, *, section: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Call every plugin that answers `hook` (of one section, if given) and return {name in the recipe: answer}.

        Each gets only the arguments that it takes; None is kept as an answer. Where the same name is in two sections
        and no section is given, the key is `section.name`.
        """
        return {(call.name if section else call.label): call(**arguments) for call in self._of(hook, section)}

    def one(self, hook: str, /, **arguments: Any) -> Any:
        """Return the only answer to `hook`, or None if no plugin implements it. Raises RecipeError for several."""
        calls = self._calls[hook]
        if len(calls) > 1:
            names = ", ".join(call.label for call in calls)
            raise RecipeError([Problem(f"`{hook}` takes one answer, but {names} give one each")])
        return calls[0](**arguments) if calls else None

    def ask(self, section: str, name: str, hook: str, /, **arguments: Any) -> Any:
        """Call the one plugin `name` of `section`."""
        (answer,) = (call(**arguments) for call in self._of(hook, section) if call.name == name)
        return answer

    def named(self, hook: str) -> tuple[tuple[str, str], ...]:
        """Return (section, name) of the plugins that answer `hook`, in the order of their calls."""
        return tuple((call.section, call.name) for call in self._calls[hook])

    def implements(self, hook: str) -> tuple[str, ...]:
        """Return the names of the plugins that answer `hook`, in the order of their calls."""
        return tuple(call.label for call in self._calls[hook])

    def functions(self, hook: str, *, section: str | None = None) -> dict[str, Callable[..., Any]]:
        """Return each implementation of `hook` as a function that takes all the hook's arguments by keyword."""
        return {call.name if section else call.label: call for call in self._of(hook, section)}

    def instances(self) -> dict[str, Any]:
        """Return {label: instance} of all plugins; the label is the name, or section.name where two sections use it."""
        return {label: self._sections[section][name] for (section, name), label in sorted(self._labels.items())}

    def section(self, name: str) -> dict[str, Any]:
        """Return {name in the recipe: instance} of a section, sorted by name; empty where the recipe has none."""
        found = {
            n: plugin
            for section, plugins in self._sections.items()
            if _is(section, name)
            for n, plugin in plugins.items()
        }
        return dict(sorted(found.items()))

    def _of(self, hook: str, section: str | None) -> tuple[_Bound, ...]:
        if section is None:
            return self._calls[hook]
        found = self._by_section.get((hook, section))
        if found is None:
            found = tuple(call for call in self._calls[hook] if _is(call.section, section))
            self._by_section[hook, section] = found
        return found


def _is(section: str, wanted: str) -> bool:
    """Say whether `section` is meant: "prepare" means "student.prepare", where only the student has one."""
    return section == wanted or section.rpartition(".")[2] == wanted == "prepare"
