"""Files of modules, found without importing anything; `importlib.util.find_spec` imports the packages of a module."""

import importlib.util
import pkgutil
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path

LITERAL = ("pydoc_data.topics",)  # modules whose {title: text} map is a literal: it is read without importing them


def module_files(name: str) -> tuple[Path, ...]:
    """Return the files that importing a module runs: the `__init__` of its packages, and its own as the last.

    A package without a file of its own is left out. Empty where there is no such module, or it has no file.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        return ()
    files: list[Path] = []
    spec = None
    for number, part in enumerate(parts := name.split(".")):
        spec = _spec(".".join(parts[: number + 1]), spec) if number else _top(part)
        if spec is None:
            return ()
        if spec.has_location and spec.origin:
            files.append(Path(spec.origin))
    return tuple(files) if spec and spec.has_location else ()


def _top(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # a module in sys.modules that has no specification
        return None


def _spec(name: str, package: ModuleSpec | None) -> ModuleSpec | None:
    """Return the specification of a module in a package."""
    places: Iterable[str] = (package and package.submodule_search_locations) or ()
    folders: list[str] = []  # of a package without `__init__`
    for place in places:
        finder = pkgutil.get_importer(str(place))
        spec = finder.find_spec(name) if finder else None
        if spec is None:
            continue
        if spec.loader is not None:
            return spec
        folders += spec.submodule_search_locations or []
    if not folders:
        return None
    namespace = ModuleSpec(name, None, is_package=True)
    namespace.submodule_search_locations = folders
    return namespace
