"""Validation of plugin classes: their hooks, the arguments of the hooks, and the sections of a recipe that they fit."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from packaging.version import InvalidVersion, Version

from neoplug import hookspecs
from neoplug.errors import Problem, did_you_mean
from neoplug.registry.per_class import per_class

# Section -> keys that stand among a plugin's options, but are read by neoplug itself.
CORE_KEYS: dict[str, tuple[str, ...]] = {"loss": ("weight", "schedule", "calibrate")}
# What a hook may return as a generator: its items are read into a list.
LISTS = ("documents", "parameter groups", "problems", "tensors")

# Hook -> its specification.
SPECS: dict[str, Callable[..., Any]] = {
    name: spec
    for stage in hookspecs.STAGES
    for name, spec in vars(stage).items()
    if getattr(spec, "neoplug_spec", None) is not None
}


class Implementation(NamedTuple):
    """A method of a plugin class that implements a hook.

    options    of `@hookimpl`, as pluggy stores them
    signature  without `self` or `cls`
    """

    hook: str
    method: str
    options: dict[str, Any]
    signature: inspect.Signature


@per_class
def answered(cls: type) -> Mapping[str, Implementation]:
    """Return {hook: implementation} of a plugin class: its methods marked `@hookimpl`."""
    return {implementation.hook: implementation for implementation in _implementations(cls)}


def _implementations(cls: type) -> Iterator[Implementation]:
    """Yield the methods of a class that are marked `@hookimpl`."""
    for method in dir(cls):
        static = inspect.getattr_static(cls, method)
        function = static.__func__ if isinstance(static, staticmethod | classmethod) else static
        options = getattr(static, "neoplug_impl", None) or getattr(function, "neoplug_impl", None)
        if isinstance(options, dict) and inspect.isfunction(function):
            hook = options.get("specname") or method
            bound = not isinstance(static, staticmethod)
            yield Implementation(hook, method, options, _signature(function, bound))


def _signature(function: Callable[..., Any], bound: bool) -> inspect.Signature:
    signature = inspect.Signature.from_callable(function)
    parameters = list(signature.parameters.values())
    return signature.replace(parameters=parameters[1:] if bound else parameters)


def class_problems(cls: type, section: str | None = None) -> list[Problem]:
    """Return why a class is not a valid plugin; most of this pluggy and dataclasses would ignore without an error.

    section  the section of the recipe that names it, as "loss" or "student.load"; None: any
    """
    if not dataclasses.is_dataclass(cls):
        return [Problem(f"{cls.__qualname__} is not a dataclass", fix="write @dataclass(eq=False) above the class")]
    if api := _api_problems(cls):  # others may follow from it
        return api
    implementations = answered(cls)
    problems = [problem for each in _implementations(cls) for problem in _hook_problems(cls, each)]
    problems += [*_uncalled(cls), *_options_without_effect(cls)]
    if hasattr(cls, "state_dict") != hasattr(cls, "load_state_dict"):
        what = f"{cls.__qualname__} has one of `state_dict` and `load_state_dict`"
        problems.append(
            Problem(what, "a resumed run needs one to save the state and one to restore it", "write both, or none")
        )
    if cls.__hash__ is None:
        what = f"{cls.__qualname__} compares by value"
        problems.append(
            Problem(what, "two plugins with equal options would be treated as one", "write @dataclass(eq=False)")
        )
    return problems + (_section_problems(cls, section, implementations) if section else [])


def _api_problems(cls: type) -> list[Problem]:
    """Return why a class cannot work with this version of the plugin API, by what it requires in `requires_api`."""
    required = getattr(cls, "requires_api", None)
    if required is None:
        return []
    try:
        missing = Version(required) > Version(hookspecs.API_VERSION)
    except (TypeError, InvalidVersion):
        return [Problem(f"{cls.__qualname__}.requires_api is {required!r}", fix='write a version as text, as "0.1"')]
    if not missing:
        return []
    what = (
        f"{cls.__qualname__} needs version {required} of the plugin API, and this neoplug has {hookspecs.API_VERSION}"
    )
    return [Problem(what, "hooks or arguments that it uses are missing here", "pip install --upgrade neoplug")]


def _uncalled(cls: type) -> Iterator[Problem]:
    """Yield what would never be called: a hook of two methods, and what is marked or named like a hook without one."""
    methods = {method: hook for hook, method, _, _ in _implementations(cls)}
    for method, hook in methods.items():
        if method != (other := answered(cls)[hook].method):
            what = f"{cls.__qualname__}.{method} implements `{hook}`, and so does `{other}`"
            yield Problem(what, "a plugin gives one answer", "write one of them, which may call the other")
    for name in sorted(set(dir(cls)) - methods.keys()):
        static = inspect.getattr_static(cls, name)
        wrapped = [
            getattr(static, attribute, None) for attribute in ("fget", "func")
        ]  # of properties, and of functools
        if any(isinstance(getattr(each, "neoplug_impl", None), dict) for each in (static, *wrapped)):
            what = f"{cls.__qualname__}.{name} is marked @hookimpl, but is no method: it is a {type(static).__name__}"
            yield Problem(what, "it would never be called", "write a method, `def` with @hookimpl above it")
        elif name in SPECS and inspect.isroutine(static):
            what = f"{cls.__qualname__}.{name} is named like a hook, but is not marked"
            yield Problem(what, "it would never be called", "write @hookimpl above it, or rename it")


def _options_without_effect(cls: type) -> Iterator[Problem]:
    """Yield what a class says of options that a recipe, or a dataclass that inherits options, ignores."""
    options = {field.name for field in dataclasses.fields(cls)}
    annotated = inspect.get_annotations(cls)
    new = [name for name, kind in annotated.items() if name not in options and "ClassVar" not in str(kind)]
    if new and "__dataclass_fields__" not in vars(cls):
        what = f"{cls.__qualname__} is not a dataclass itself, so `{new[0]}` is no option of it"
        yield Problem(
            what, "its options are those of the class that it inherits", "write @dataclass(eq=False) above it"
        )
    for parameter in inspect.signature(cls).parameters.values():
        is_given = parameter.name in options or parameter.default is not parameter.empty
        if not is_given and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            what = f"{cls.__qualname__} cannot be built without `{parameter.name}`, which is no option"
            yield Problem(what, "options are the fields of the dataclass, without `InitVar`", "make it a field")
    for base in cls.__mro__:
        for name in sorted(options & vars(base).keys() - inspect.get_annotations(base).keys()):
            value = vars(base)[name]
            if dataclasses.is_dataclass(base) and not hasattr(value, "__get__"):
                what = f"{cls.__qualname__} gives the option `{name}` the value {value!r} without an annotation"
                why = "a dataclass ignores it: the default stays that of the class that it inherits"
                yield Problem(what, why, f"write `{name}: {type(value).__name__} = {value!r}` in a dataclass")


def _hook_problems(cls: type, implementation: Implementation) -> list[Problem]:
    """Return why a method marked `@hookimpl` is not a valid implementation."""
    hook, method, options, signature = implementation
    label = f"{cls.__qualname__}.{method}"
    if hook not in SPECS:
        return [Problem(f"{label} is marked @hookimpl, but no hook is named `{hook}`{did_you_mean(hook, list(SPECS))}")]
    if options.get("wrapper") or options.get("hookwrapper"):
        why = "a plugin may not change another's result"
        return [Problem(f"{label} is a hook wrapper", why, "write @hookimpl alone")]
    problems = list(_kind_of_function_problems(label, inspect.unwrap(getattr(cls, method)), SPECS[hook]))
    known = list(inspect.signature(SPECS[hook]).parameters)
    for name, parameter in signature.parameters.items():
        if name not in known:
            what = f"{label} takes `{name}`, which the hook does not have{did_you_mean(name, known)}"
            problems.append(Problem(what, fix=f"it may take {', '.join(known)}"))
        elif parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or parameter.default is not parameter.empty:
            what = f"{label} must take `{name}` by position, without a default"
            problems.append(
                Problem(
                    what, "pluggy passes no argument that has a default or is keyword-only", f"write `{name}` alone"
                )
            )
    return problems


def _kind_of_function_problems(label: str, function: Any, spec: Any) -> Iterator[Problem]:
    """Yield why a function whose body does not run when it is called cannot implement a hook."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        yield Problem(
            f"{label} is async", "hooks are called without an event loop", "write `def` in place of `async def`"
        )
    elif inspect.isgeneratorfunction(function) and spec.returns.kind not in LISTS:
        yield Problem(f"{label} has a `yield`", "this hook returns no list of items", "write `return`, or nothing")


def kind_of(section: str) -> str:
    """Return the kind of plugins in a section: "load" of "student.load", "source" of all sections below "data"."""
    return "source" if section.startswith("data.") else section.rpartition(".")[2]


def _section_problems(cls: type, section: str, implementations: Mapping[str, Implementation]) -> list[Problem]:
    """Return why a plugin does not fit a section: it implements none of its hooks, or has an option that is taken."""
    kind = kind_of(section)
    wanted = hookspecs.HOOKS_OF_SECTION[kind]
    problems = []
    if not set(wanted) & set(implementations):
        fits = [other for other, hooks in hookspecs.HOOKS_OF_SECTION.items() if set(hooks) & set(implementations)]
        what = f"{cls.__qualname__} cannot be used under `{kind}`"
        why = f"it implements none of {', '.join(wanted)}"
        fix = f"it fits under {' or '.join(fits)}" if fits else "write one, marked @hookimpl"
        problems.append(Problem(what, why, fix))
    if "encode_teacher" in implementations and "decode_teacher" not in implementations:
        what = f"{cls.__qualname__} implements `encode_teacher`, but not `decode_teacher`"
        problems.append(Problem(what, "nothing would read what it stores", "write `decode_teacher`, marked @hookimpl"))
    for name in CORE_KEYS.get(kind, ()):
        if name in getattr(cls, "__dataclass_fields__", {}):
            what = f"{cls.__qualname__} has an option `{name}`, which neoplug reads itself in this section"
            problems.append(Problem(what, fix="its author must rename it"))
    return problems
