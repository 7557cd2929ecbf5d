"""Plugins: found without import, built from their options, and called by the name that the recipe gives them.

A name in a recipe is `name`, `package:name` or `./file.py:Class`, each with an optional `@tag`.
`installed` and `find` import nothing; only `Entry.load` does, for what a recipe names.
"""

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pluggy

from neoplug import hookspecs
from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, blaming, did_you_mean, in_file
from neoplug.registry.options import build

__all__ = ["CORE_KEYS", "Entry", "Plugins", "answered", "build", "class_problems", "find", "installed", "path_of"]

GROUP = "neoplug"
CORE_KEYS: dict[str, tuple[str, ...]] = {"loss": ("weight", "schedule", "calibrate")}  # the core's, among options
SPECS: dict[str, Callable[..., Any]] = {
    name: spec for name, spec in vars(hookspecs).items() if getattr(spec, "neoplug_spec", None) is not None
}
_FILE = re.compile(r"(?P<file>.+\.py):(?P<attribute>[A-Za-z_][\w.]*)")
_TAG = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Entry:
    """A plugin that can be loaded.

    name     as its package registers it, or the class of a local file
    package  the distribution, or the path of the file
    version  of the distribution; empty for a file
    target   `module:attribute`, or `/path/file.py:attribute`
    """

    name: str
    package: str
    version: str
    target: str

    @property
    def file(self) -> Path | None:
        """The local file that holds the plugin, or None for an installed one."""
        match = _FILE.fullmatch(self.target)
        return Path(match["file"]) if match and Path(match["file"]).is_absolute() else None

    def load(self) -> type:
        """Import the plugin's class. Raises RecipeError, saying what failed and whose it is."""
        module, _, attribute = self.target.rpartition(":")
        try:
            if not module:
                raise ValueError(f"`{self.target}` names no class, as module:Class would")
            found: Any = _import_file(self.file) if self.file else importlib.import_module(module)
            for part in attribute.split("."):
                found = _part(found, part, module)
        except (Exception, SystemExit) as error:
            owner = f"{self.package} {self.version}".strip()
            why = f"{type(error).__name__}: {error}{in_file(error, self.file)}"
            what = f"the plugin `{self.name}` of {owner} cannot be imported: {why}"
            fix = "mend the file" if self.file else f"mend or reinstall {self.package}, or name another plugin"
            raise RecipeError([Problem(what, fix=fix)]) from error
        if not inspect.isclass(found):
            raise RecipeError([Problem(f"`{self.target}` is no class", fix="a plugin is a dataclass")])
        return found


def _part(whole: Any, name: str, module: str) -> Any:
    if not hasattr(whole, name):
        classes = [known for known, value in vars(whole).items() if inspect.isclass(value)]
        raise AttributeError(f"{module} has no `{name}`{did_you_mean(name, classes)}")
    return getattr(whole, name)


class _SourceOnly(SourceFileLoader):
    """Runs a file and leaves no .pyc beside it: a recipe's folder is the user's."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Write nothing."""


def _import_file(path: Path) -> ModuleType:
    """Import a local file under a name of its own; the same bytes are run once."""
    digest = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes()).hexdigest()[:16]
    name = f"neoplug_file_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _SourceOnly(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader, origin=str(path))
    assert spec is not None
    spec.has_location = True
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def installed() -> list[Entry]:
    """List the entry points of group `neoplug`, sorted by name and package. Imports none of them."""
    from importlib.metadata import entry_points

    changed = tuple((place, place.stat().st_mtime_ns) for place in map(Path, sys.path) if place.exists())
    return list(_listed(entry_points, changed))


@lru_cache(maxsize=1)  # every installed package is looked at for it, so only when a folder changed
def _listed(entry_points: Callable[..., Any], _: tuple[tuple[Path, int], ...]) -> list[Entry]:
    points = entry_points(group=GROUP)
    owners: dict[Any, tuple[str, str]] = {}
    for dist in {point.dist for point in points}:
        owners[dist] = (dist.name, dist.version) if dist else ("?", "")  # each parses a file
    found = {Entry(point.name, *owners[point.dist], point.value) for point in points}
    return sorted(found, key=lambda entry: (entry.name, entry.package, entry.target))


def find(name_in_recipe: str, base: Path) -> Entry:
    """Return the entry that a recipe's plugin name means; `./file.py:Class` starts at `base`. Imports nothing.

    Raises RecipeError for an unknown or ambiguous name, or a file that is not there.
    """
    name = _without_tag(name_in_recipe)
    if match := _FILE.fullmatch(name):
        return _find_file(match, base)
    entries = installed()
    package, _, short = name.rpartition(":")
    found = [entry for entry in entries if entry.name == short and package in ("", entry.package)]
    found = found or [
        e for e in entries if e.name == short and package and _canonical(e.package) == _canonical(package)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        full = [f"`{entry.package}:{entry.name}`" for entry in found]
        raise RecipeError([Problem(f"two packages call a plugin `{short}`", fix=f"write {' or '.join(full)}")])
    names = sorted(
        {entry.name for entry in entries} | {f"{entry.package}:{entry.name}" for entry in entries if package}
    )
    why = f"installed: {', '.join(sorted({entry.name for entry in entries}))}"
    fix = "`neoplug plugins` lists what is installed; a file is `./file.py:Class`"
    raise RecipeError([Problem(f"no plugin is named `{name}`{did_you_mean(name, names)}", why, fix)])


def _without_tag(name_in_recipe: str) -> str:
    match = _FILE.match(name_in_recipe)
    start = match.end() if match else 0
    name, at, tag = name_in_recipe[start:].partition("@")
    if "@" in tag:
        raise RecipeError([Problem(f"`{name_in_recipe}` has two tags", fix="write name@tag, with one @")])
    if at and not _TAG.fullmatch(tag):
        raise RecipeError([Problem(f"`{tag}` is no tag", fix="a tag is made of letters, digits, _ and -")])
    return name_in_recipe[:start] + name


def _find_file(match: re.Match[str], base: Path) -> Entry:
    try:
        path = Path(match["file"]).expanduser()
        path = (base / path).resolve()
        there = path.is_file()
    except (OSError, RuntimeError, ValueError):
        there = False
    if not there:
        raise RecipeError([Problem(f"there is no file {match['file']}", f"looked in {base}")])
    return Entry(match["attribute"], str(path), "", f"{path}:{match['attribute']}")


def _canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


class Implementation(NamedTuple):
    """A method of a plugin class that answers a hook."""

    hook: str
    method: str
    options: dict[str, Any]
    signature: inspect.Signature


def answered(cls: type) -> dict[str, Implementation]:
    """Return the hooks that a plugin class answers: the methods marked `@hookimpl`, by hook."""
    found: dict[str, Implementation] = {}
    for method in dir(cls):
        static = inspect.getattr_static(cls, method)
        function = static.__func__ if isinstance(static, staticmethod | classmethod) else static
        options = getattr(static, "neoplug_impl", None) or getattr(function, "neoplug_impl", None)
        if isinstance(options, dict) and inspect.isfunction(function):
            hook = options.get("specname") or method
            bound = not isinstance(static, staticmethod)
            found[hook] = Implementation(hook, method, options, _signature(function, bound))
    return found


def _signature(function: Callable[..., Any], bound: bool) -> inspect.Signature:
    signature = inspect.Signature.from_callable(function)
    parameters = list(signature.parameters.values())
    return signature.replace(parameters=parameters[1:] if bound else parameters)


def class_problems(cls: type, section: str | None = None) -> list[Problem]:
    """Say what makes a class no plugin (of `section`, as "loss" or "student.load"); pluggy would pass over most."""
    if not is_dataclass(cls):
        return [Problem(f"{cls.__qualname__} is no dataclass", fix="write @dataclass(eq=False) above the class")]
    found = answered(cls)
    problems = [problem for implementation in found.values() for problem in _hook_problems(cls, implementation)]
    methods = {implementation.method for implementation in found.values()}
    for name in SPECS:
        if name not in methods and inspect.isroutine(inspect.getattr_static(cls, name, None)):
            what = f"{cls.__qualname__}.{name} is named like a hook, but is not marked"
            problems.append(Problem(what, "it would never be called", "write @hookimpl above it, or rename it"))
    if hasattr(cls, "state_dict") != hasattr(cls, "load_state_dict"):
        what = f"{cls.__qualname__} has one of `state_dict` and `load_state_dict`"
        problems.append(Problem(what, "a resumed run needs what a checkpoint kept, and back", "write both, or none"))
    if cls.__hash__ is None:
        what = f"{cls.__qualname__} compares by value"
        problems.append(
            Problem(what, "two plugins with equal options would be taken for one", "write @dataclass(eq=False)")
        )
    return problems + (_section_problems(cls, section, found) if section else [])


def _hook_problems(cls: type, implementation: Implementation) -> list[Problem]:
    hook, method, options, signature = implementation
    label = f"{cls.__qualname__}.{method}"
    if hook not in SPECS:
        return [Problem(f"{label} is marked @hookimpl, but no hook is named `{hook}`{did_you_mean(hook, list(SPECS))}")]
    problems = []
    if options.get("wrapper") or options.get("hookwrapper"):
        problems.append(
            Problem(f"{label} is a hook wrapper", "a plugin may not change another's answer", "write a hook")
        )
    known = list(inspect.signature(SPECS[hook]).parameters)
    for name, parameter in signature.parameters.items():
        if name not in known:
            what = f"{label} asks for `{name}`, which the hook does not have{did_you_mean(name, known)}"
            problems.append(Problem(what, fix=f"it may ask for {', '.join(known)}"))
        elif parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or parameter.default is not parameter.empty:
            what = f"{label} must take `{name}` as a plain argument"
            problems.append(
                Problem(what, "one with a default, or by keyword only, would never be given", "take it plainly")
            )
    return problems


def _section_problems(cls: type, section: str, found: Mapping[str, Implementation]) -> list[Problem]:
    kind = section.rpartition(".")[2]
    wanted = hookspecs.HOOKS_OF_SECTION[kind]
    problems = []
    if not set(wanted) & set(found):
        fits = [other for other, hooks in hookspecs.HOOKS_OF_SECTION.items() if set(hooks) & set(found)]
        what = f"{cls.__qualname__} cannot stand under `{kind}`"
        why = f"it answers none of {', '.join(wanted)}"
        fix = f"it fits under {' or '.join(fits)}" if fits else "write one, marked @hookimpl"
        problems.append(Problem(what, why, fix))
    for name in CORE_KEYS.get(kind, ()):
        if name in getattr(cls, "__dataclass_fields__", {}):
            what = f"{cls.__qualname__} has an option `{name}`, which belongs to neoplug in this section"
            problems.append(Problem(what, fix="its author must rename it"))
    return problems


def path_of(section: str, name: str) -> Key:
    """Return where a plugin stands in a recipe: ("student", "load", NAME) for section "student.load"."""
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
        """Call it with those of the hook's arguments that it asks for; `name` is its own. Raises PluginError."""
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

        Each gets only the arguments it asks for; None is kept as an answer. Where the same name stands in two sections
        and no section is given, the key is `section.name`.
        """
        return {(call.name if section else call.label): call(**arguments) for call in self._of(hook, section)}

    def one(self, hook: str, /, **arguments: Any) -> Any:
        """Return the only answer to `hook`, or None where nobody implements it. Raises RecipeError for several."""
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

    def everyone(self) -> dict[str, Any]:
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


def _is(section: str, asked: str) -> bool:
    """Say whether `section` is meant: "prepare" means "student.prepare", where only the student has one."""
    return section == asked or section.rpartition(".")[2] == asked == "prepare"
