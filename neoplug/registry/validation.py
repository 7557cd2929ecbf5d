"""Validation of plugin classes: their hooks, the arguments of these, and the section that they fit."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

from neoplug import hookspecs
from neoplug.errors import Problem, did_you_mean

CORE_KEYS: dict[str, tuple[str, ...]] = {"loss": ("weight", "schedule", "calibrate")}  # the core's, among options


SPECS: dict[str, Callable[..., Any]] = {
    name: spec for name, spec in vars(hookspecs).items() if getattr(spec, "neoplug_spec", None) is not None
}


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
