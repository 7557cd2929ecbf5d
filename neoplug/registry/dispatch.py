"""Calls of hooks: which plugins of a run implement a hook, and their calls in the order of their names.

Every call goes through `checked_call`, which checks the answer (`answers.checks`).
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from inspect import isgenerator
from typing import Any

import pluggy

from neoplug import hookspecs
from neoplug.answers.checks import WORDS, before_call, read_answer
from neoplug.answers.plain_values import Refusal
from neoplug.answers.rules import Returns
from neoplug.errors import AnswerError, Problem, RecipeError, UsageError, place_of, plugin_errors
from neoplug.errors import Path as Key
from neoplug.registry.discovery import GROUP
from neoplug.registry.opened_source import OpenedSource
from neoplug.registry.validation import SPECS, class_problems

NAMED_SOURCES = "data.sources."  # how the section of a named source begins


def path_of(section: str, name: str) -> Key:
    """Return a plugin's key in a recipe: ("student", "load", NAME) for the section "student.load".

    The section of a named source is "data.sources.ITS NAME.source"; that name may have dots.
    """
    if section.startswith(NAMED_SOURCES):
        return (*NAMED_SOURCES[:-1].split("."), *section.removeprefix(NAMED_SOURCES).rsplit(".", 1), name)
    return (*section.split("."), name)


@dataclass(frozen=True)
class _Bound:
    """One plugin's implementation of a hook.

    hook       name of the hook
    section    of the recipe, as "student.load"
    name       the plugin's name in the recipe
    label      the name; `section.name` where another section has the same name
    arguments  names of the hook's arguments that the implementation takes
    """

    hook: str
    section: str
    name: str
    label: str
    function: Callable[..., Any]
    arguments: Sequence[str]

    def __call__(self, **arguments: Any) -> Any:
        """Call it with those of the arguments that it takes, and return its checked answer.

        A UsageError, which has no place, becomes a RecipeError at the plugin's key.
        """
        # `name` is the plugin's name in the recipe, so the caller of the hook does not pass it.
        taken = [self.name if name == "name" else arguments[name] for name in self.arguments]
        try:
            return checked_call(self.hook, self.label, self.function, taken, arguments)
        except UsageError as error:
            if type(error) is not UsageError:
                raise
            raise RecipeError([Problem.of(error, path_of(self.section, self.name))]) from error


def checked_call(
    hook: str, label: str, function: Callable[..., Any], taken: Sequence[Any], arguments: Mapping[str, Any]
) -> Any:
    """Call an implementation of a hook and return its answer in the form that the core reads.

    taken      the arguments that the implementation takes, in order
    arguments  all arguments of the call, by name

    Raises:
        PluginError: the plugin raised an exception, or its answer breaks the rule of the hook.
    """
    rule: Returns = SPECS[hook].returns  # type: ignore[attr-defined]
    before = before_call(rule, arguments)
    with plugin_errors(label, hook, function):
        answer = function(*taken)
        answer = list(answer) if isgenerator(answer) else answer
    try:
        return read_answer(rule, answer, arguments, before)
    except Refusal as refusal:
        what, (why, fix) = refusal.sentence(label, hook), WORDS[rule.kind]
        raise AnswerError(label, hook, what, refusal.why or why, refusal.fix or fix, function) from None


class Plugins:
    """The plugins of one run, with a separate plugin manager; hooks call them in the order of their names.

    sections  {section: {name in the recipe: instance}}, as {"student.load": {"nf4": NF4()}}

    A plugin's label is its name in the recipe, or `section.name` where another section has the same name.

    Raises RecipeError for what pluggy would ignore without an error: methods named like a hook without `@hookimpl`,
    unknown hooks and arguments, and wrappers.
    """

    def __init__(self, sections: Mapping[str, Mapping[str, Any]]) -> None:
        self._sections = {section: dict(plugins) for section, plugins in sections.items()}
        every = sorted((name, section) for section, plugins in self._sections.items() for name in plugins)
        self._validate(every)
        names = [name for name, _ in every]
        self._labels = {(s, n): n if names.count(n) == 1 else f"{s}.{n}" for n, s in every}
        self.manager = pluggy.PluginManager(GROUP)
        for stage in hookspecs.STAGES:
            self.manager.add_hookspecs(stage)
        for name, section in reversed(every):  # pluggy calls the last registered first
            self.manager.register(self._sections[section][name], name=f"{section}.{name}")
        self.manager.check_pending()
        owners = {f"{section}.{name}": (section, name) for name, section in every}
        self._calls = {hook: self._bind(hook, owners) for hook in SPECS}
        self._by_section: dict[tuple[str, str | None], tuple[_Bound, ...]] = {}
        self._sources: dict[str, OpenedSource] = {}

    def copied(self) -> "Plugins":
        """Return deep copies of the plugins: calls of their hooks do not change the state of these."""
        return Plugins(deepcopy(self._sections))

    def _validate(self, every: list[tuple[str, str]]) -> None:
        """Raise RecipeError for what is wrong with the classes of the plugins, given as (name, section)."""
        problems = []
        for name, section in every:
            for problem in class_problems(type(self._sections[section][name])):
                problems.append(Problem(problem.what, problem.why, problem.fix, path_of(section, name)))
        if problems:
            raise RecipeError(problems)

    def _bind(self, hook: str, owners: Mapping[str, tuple[str, str]]) -> tuple[_Bound, ...]:
        """Return the implementations of a hook in the order of their calls.

        owners  name in pluggy -> (section, name in the recipe)
        """
        calls = reversed(getattr(self.manager.hook, hook).get_hookimpls())  # pluggy keeps the first to call at the end
        bound = [
            _Bound(hook, *owner, self._labels[owner], call.function, call.argnames)
            for call, owner in ((call, owners[call.plugin_name]) for call in calls)
        ]
        if getattr(SPECS[hook], "answers", "all") == "each loss":  # only plugins in the section `loss` implement it
            return tuple(replace(call, label=call.name) for call in bound if call.section == "loss")
        return tuple(bound)

    def each(self, hook: str, /, *, section: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Call every plugin that implements `hook`, and return {label: result}; results may be None.

        section  call only the plugins of this section, and return {name: result}
        """
        return {(call.name if section else call.label): call(**arguments) for call in self._of(hook, section)}

    def one(self, hook: str, /, **arguments: Any) -> Any:
        """Call the plugin that implements `hook`, and return its result; None if no plugin implements it.

        Raises RecipeError where several do.
        """
        calls = self._calls[hook]
        if len(calls) > 1:
            names = ", ".join(call.label for call in calls)
            raise RecipeError([Problem(f"only one plugin may implement `{hook}`, but {names} do")])
        return calls[0](**arguments) if calls else None

    def ask(self, section: str, name: str, hook: str, /, **arguments: Any) -> Any:
        """Call `hook` of the plugin `name` in `section`, which must implement it, and return the result."""
        (result,) = (call(**arguments) for call in self._of(hook, section) if call.name == name)
        return result

    def source(self, section: str) -> OpenedSource:
        """Return the source that the one plugin of a section opens, as "data.source"; it is opened once."""
        if section not in self._sources:
            (call,) = self._of("open_source", section)
            plugin, path = self._sections[section][call.name], path_of(section, call.name)
            answer = self.ask(section, call.name, "open_source")
            self._sources[section] = OpenedSource(plugin, call.label, path, call.function, answer)
        return self._sources[section]

    def refused(self, hook: str, what: str, why: str, fix: str) -> AnswerError:
        """Return the error of an answer to `hook` that does not fit the run; it names the plugin with file and line.

        what  what the plugin did: a verb, as in "added the module `x`"
        """
        call, *_ = self._calls[hook]
        return AnswerError(call.label, hook, Refusal(what).sentence(call.label, hook), why, fix, call.function)

    def named(self, hook: str) -> tuple[tuple[str, str], ...]:
        """Return (section, name) of the plugins that implement `hook`, in the order of their calls."""
        return tuple((call.section, call.name) for call in self._calls[hook])

    def implements(self, hook: str) -> tuple[str, ...]:
        """Return the labels of the plugins that implement `hook`, in the order of their calls."""
        return tuple(call.label for call in self._calls[hook])

    def functions(self, hook: str, *, section: str | None = None) -> dict[str, Callable[..., Any]]:
        """Return {label: function}, or {name: function} with `section`, of the implementations of `hook`.

        Each function takes all arguments of the hook by keyword.
        """
        return {call.name if section else call.label: call for call in self._of(hook, section)}

    def places(self, hook: str) -> dict[str, str]:
        """Return {label: file:line, with the package} of the implementations of `hook`."""
        return {call.label: place_of(call.function) for call in self._of(hook, None)}

    def instances(self) -> dict[str, Any]:
        """Return {label: instance} of all plugins."""
        return {label: self._sections[section][name] for (section, name), label in sorted(self._labels.items())}

    def section(self, name: str) -> dict[str, Any]:
        """Return {name in the recipe: instance} of a section, sorted by name; empty where the recipe has none."""
        instances = {
            n: plugin
            for section, plugins in self._sections.items()
            if _matches(section, name)
            for n, plugin in plugins.items()
        }
        return dict(sorted(instances.items()))

    def _of(self, hook: str, section: str | None) -> tuple[_Bound, ...]:
        """Return the implementations of `hook` in all sections, or in one."""
        if section is None:
            return self._calls[hook]
        calls = self._by_section.get((hook, section))
        if calls is None:
            calls = tuple(call for call in self._calls[hook] if _matches(call.section, section))
            self._by_section[hook, section] = calls
        return calls


def _matches(section: str, wanted: str) -> bool:
    """Whether `section` is the wanted one; "prepare" is short for "student.prepare"."""
    return section == wanted or section.rpartition(".")[2] == wanted == "prepare"
