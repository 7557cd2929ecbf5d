"""Validation of plugin classes: their hooks, the arguments of the hooks, and the sections of a recipe that they fit."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

from packaging.version import InvalidVersion, Version

from neoplug import hookspecs
from neoplug.errors import Problem, did_you_mean
from neoplug.registry.per_class import per_class

# Section -> keys that stand among a plugin's options, but are read by neoplug itself.
CORE_KEYS: dict[str, tuple[str, ...]] = {"loss": ("weight", "schedule", "calibrate")}

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
    implementations: dict[str, Implementation] = {}
    for method in dir(cls):
        static = inspect.getattr_static(cls, method)
        function = static.__func__ if isinstance(static, staticmethod | classmethod) else static
        options = getattr(static, "neoplug_impl", None) or getattr(function, "neoplug_impl", None)
        if isinstance(options, dict) and inspect.isfunction(function):
            hook = options.get("specname") or method
            bound = not isinstance(static, staticmethod)
            implementations[hook] = Implementation(hook, method, options, _signature(function, bound))
    return implementations


def _signature(function: Callable[..., Any], bound: bool) -> inspect.Signature:
    signature = inspect.Signature.from_callable(function)
    parameters = list(signature.parameters.values())
    return signature.replace(parameters=parameters[1:] if bound else parameters)


def class_problems(cls: type, section: str | None = None) -> list[Problem]:
    """Return why a class is not a valid plugin; most of this pluggy would ignore without an error.

    section  the section of the recipe that names it, as "loss" or "student.load"; None: any
    """
    if not is_dataclass(cls):
        return [Problem(f"{cls.__qualname__} is not a dataclass", fix="write @dataclass(eq=False) above the class")]
    if api := _api_problems(cls):  # others may follow from it
        return api
    implementations = answered(cls)
    problems = [
        problem for implementation in implementations.values() for problem in _hook_problems(cls, implementation)
    ]
    methods = {implementation.method for implementation in implementations.values()}
    for name in SPECS:
        if name not in methods and inspect.isroutine(inspect.getattr_static(cls, name, None)):
            what = f"{cls.__qualname__}.{name} is named like a hook, but is not marked"
            problems.append(Problem(what, "it would never be called", "write @hookimpl above it, or rename it"))
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


def _hook_problems(cls: type, implementation: Implementation) -> list[Problem]:
    """Return why a method marked `@hookimpl` is not a valid implementation."""
    hook, method, options, signature = implementation
    label = f"{cls.__qualname__}.{method}"
    if hook not in SPECS:
        return [Problem(f"{label} is marked @hookimpl, but no hook is named `{hook}`{did_you_mean(hook, list(SPECS))}")]
    problems = []
    if options.get("wrapper") or options.get("hookwrapper"):
        problems.append(
            Problem(f"{label} is a hook wrapper", "a plugin may not change another's result", "write @hookimpl alone")
        )
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
