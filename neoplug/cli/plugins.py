"""`neoplug plugins`: list installed plugins, or show one plugin's options, hooks and documentation."""

import dataclasses
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neoplug import hookspecs
from neoplug.cli.arguments import AsJson, Trust
from neoplug.cli.matrix import print_matrices
from neoplug.cli.screen import columns, echo, echo_json, heading, table
from neoplug.errors import NeoplugError, UsageError, did_you_mean

if TYPE_CHECKING:
    from neoplug.registry import Entry

REGISTERED = ("name", "package", "version", "target")
HEADER = ("name", "package", "version", "description")
UNKNOWN = "unknown kind"


def plugins(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Show this one: its options, hooks, docstring and source.", metavar="NAME", show_default=False
        ),
    ] = None,
    section: Annotated[
        str | None,
        typer.Option(
            help=f"List the plugins for a section ({', '.join(hookspecs.HOOKS_OF_SECTION)}); this imports the plugins.",
            metavar="SECTION",
            show_default=False,
        ),
    ] = None,
    matrix: Annotated[
        bool,
        typer.Option(
            "--matrix", help="Show which adapter works with which loading on which family of models, as measured."
        ),
    ] = False,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """List the installed plugins without importing them, or show one."""
    from neoplug.registry import installed

    if section is not None and (name is not None or matrix):
        raise UsageError(f"name {'a plugin' if name else '--matrix'} or a section, not both")
    if matrix:
        print_matrices(name, as_json)
    elif name is not None:
        print_plugin(describe(name, trust or ()), as_json)
    else:
        entries = installed() if section is None else list(plugins_of(section))
        rows = [row_of(entry) for entry in entries]
        if as_json:
            echo_json(rows)
        else:
            print_list(rows)


def row_of(entry: "Entry") -> dict[str, Any]:
    """Return what is known of a plugin without importing it; values are null where its file does not say them."""
    from neoplug.registry.syntax import summary

    read = summary(entry)
    described = {"kind": read.kind, "description": read.description, "fault": read.fault}
    return registered(entry) | {key: text or None for key, text in described.items()}


def registered(entry: "Entry") -> dict[str, Any]:
    """Return name, package, version and target of a plugin."""
    return {key: getattr(entry, key) for key in REGISTERED}


def print_list(rows: Sequence[dict[str, Any]]) -> None:
    """Print plugins grouped by kind, in the order of the sections."""
    kinds = [row["kind"] or UNKNOWN for row in rows]
    cells = [[f"  {row['name']}", row["package"], row["version"], description_of(row)] for row in rows]
    header, *lines = columns([(f"  {HEADER[0]}", *HEADER[1:]), *cells])
    echo(header)
    for kind in (*hookspecs.HOOKS_OF_SECTION, UNKNOWN):
        if own := [[line] for line, other in zip(lines, kinds, strict=True) if other == kind]:
            table(own, header=[kind])


def description_of(row: dict[str, Any]) -> str:
    """Return a plugin's description as text, with the reason where there is none."""
    return row["description"] or ": ".join(filter(None, ["no description", row["fault"]]))


def plugins_of(section: str) -> Iterator["Entry"]:
    """Yield the plugins that implement a hook of a section; one that cannot be imported is reported on stderr."""
    from neoplug.registry import answered, installed

    sections = hookspecs.HOOKS_OF_SECTION
    if section not in sections:
        known = ", ".join(sections)
        raise UsageError(f"there is no section {section}{did_you_mean(section, list(sections))}\nfix: one of {known}")
    for entry in installed():
        try:
            answers = answered(entry.load())
        except NeoplugError as error:
            print(f"left out: {error.message().partition(chr(10))[0]}", file=sys.stderr)
            continue
        if set(answers) & set(sections[section]):
            yield entry


def describe(name: str, trust: Sequence[str] = ()) -> dict[str, Any]:
    """Return a plugin's package, sections, options, hooks, docstring and source file.

    Raises:
        RecipeError: the plugin is unknown, or cannot be imported.
    """
    from neoplug.registry import SPECS, answered

    entry = find_typed(name, trust)
    plugin = entry.load()
    found = answered(plugin)
    answers = [hook for hook in SPECS if hook in found]
    return {
        **registered(entry),
        "sections": [section for section, hooks in hookspecs.HOOKS_OF_SECTION.items() if set(hooks) & set(answers)],
        "options": list(options(plugin)),
        "hooks": {hook: SPECS[hook].answers for hook in answers},  # type: ignore[attr-defined]
        "docstring": docstring(plugin),
        "source": source_file(plugin),
    }


def find_typed(name: str, trust: Sequence[str]) -> "Entry":
    """Return the entry of a plugin that the user typed. Raises RecipeError where that is no consent to its code.

    trust  code that may run, as `--trust` names it
    """
    from neoplug.registry import find
    from neoplug.registry.consent import Code, Consent, Naming

    entry = find(name, Path.cwd())
    if not entry.is_installed:
        Consent(trust=trust).require(Code.of_plugin(entry), Naming(name, Path.cwd(), is_typed=True))
    return entry


def options(plugin: type) -> Iterator[dict[str, Any]]:
    """Yield name, type, default and comment of each option; a default that JSON cannot hold is its `repr`."""
    from neoplug.registry.comments import comments_of

    if not dataclasses.is_dataclass(plugin):
        return
    comments = comments_of(plugin)
    for field in dataclasses.fields(plugin):
        if not field.init:
            continue
        option: dict[str, Any] = {"name": field.name, "type": type_name(field.type)}
        if field.default_factory is not dataclasses.MISSING:
            option["default"] = json_ready(field.default_factory())
        elif field.default is not dataclasses.MISSING:
            option["default"] = json_ready(field.default)
        if field.name in comments:
            option["comment"] = comments[field.name]
        yield option


def type_name(annotation: Any) -> str:
    """Return an option's type as text: the class name, or the annotation."""
    plain = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    return annotation.__name__ if plain else str(annotation).replace("typing.", "")


def json_ready(value: Any) -> Any:
    """Return the value, or its `repr` where JSON cannot hold it."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)
    return value


def docstring(plugin: type) -> str:
    """Return a plugin's documentation: the docstring of its module, then that of its class."""
    module = inspect.getdoc(sys.modules.get(plugin.__module__)) or ""
    own = inspect.cleandoc(plugin.__doc__ or "")
    generated = own.startswith(f"{plugin.__name__}(")  # by dataclasses, for a class without docstring: its signature
    return "\n\n".join(filter(None, [module, "" if generated else own]))


def source_file(plugin: type) -> str | None:
    """Return the file that defines a class; None without one."""
    try:
        return inspect.getsourcefile(plugin)
    except (TypeError, OSError):
        return None


def print_plugin(plugin: dict[str, Any], as_json: bool) -> None:
    """Print one plugin."""
    if as_json:
        echo_json(plugin)
        return
    echo(f"{plugin['name']}  {plugin['package']} {plugin['version']}  {plugin['target']}")
    echo(f"sections: {', '.join(plugin['sections']) or 'none'}")
    echo(f"source: {plugin['source']}")
    heading("options")
    cells = [[f"  {o['name']}", o["type"], default(o), o.get("comment", "")] for o in plugin["options"]]
    table(cells or [["  none"]])
    heading("hooks")
    table([[f"  {hook}", f"implemented by {rule}"] for hook, rule in plugin["hooks"].items()] or [["  none"]])
    if plugin["docstring"]:
        heading("description")
        echo(plugin["docstring"])


def default(option: dict[str, Any]) -> str:
    """Return an option's default as text."""
    return f"default {json.dumps(option['default'])}" if "default" in option else "required"
