"""Discovery of plugins by their names in a recipe: entry points of installed packages, local files, given classes.

A name in a recipe is `name`, `package:name`, `./file.py:Class` or `package.module:Class`, each with an optional `@tag`;
or the name of a class that a Python call gives, as a notebook does. `installed` and `find` import no plugin;
`Entry.load` imports one.
"""

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from neoplug.errors import ImmediateStop, Problem, RecipeError, UsageError, did_you_mean, line_in, lines_of
from neoplug.files import sha256_of
from neoplug.registry import confinement
from neoplug.registry.confinement import confined
from neoplug.registry.modules import module_files

GROUP = "neoplug"
SHIPPED = "neoplug"  # the package whose names no other package changes
NEAR = 5  # names in the message about an unknown one
_FILE = re.compile(r"(?P<file>.+\.py):(?P<attribute>[A-Za-z_][\w.]*)")
_TAG = re.compile(r"[\w-]+")
_IMPORTERS = (__file__, confinement.__file__, importlib.__file__)  # whose lines are in every traceback of an import


@dataclass(frozen=True)
class Entry:
    """A plugin that can be loaded.

    name     as its package registers it; else the class
    package  name of the distribution; for a local file, its path; for a class of a module or a given one, the module
    version  of the distribution; empty where there is none
    target   `module:attribute`, or `/path/file.py:attribute`
    given    the class itself, where a Python call gives it
    note     what else the name in the recipe could mean, for `plan`; empty where it means nothing else
    """

    name: str
    package: str
    version: str
    target: str
    given: type | None = field(default=None, compare=False, repr=False)
    note: str = field(default="", compare=False)

    @property
    def file(self) -> Path | None:
        """The local file that holds the plugin, or None for an installed one."""
        match = _FILE.fullmatch(self.target)
        return Path(match["file"]) if match and Path(match["file"]).is_absolute() else None

    @property
    def is_installed(self) -> bool:
        """Whether an installed package registers it, or a Python call gives it.

        Other plugins are files, or modules that a recipe names.
        """
        return bool(self.version or self.given)

    @property
    def sha256(self) -> str | None:
        """The hash of the source of a plugin without a version: of its file, or of the text of a given class.

        None where there is no source, and for a plugin with a version.
        """
        if self.version:
            return None
        if self.given:
            text = source_of(self.given)
            return hashlib.sha256(text.encode()).hexdigest() if text else None
        files = (self.file,) if self.file else module_files(self.target.rpartition(":")[0])
        return sha256_of(files[-1]) if files else None

    def load(self) -> type:
        """Import and return the plugin's class. Raises RecipeError, which names package or file, where that fails."""
        if self.given:
            return self.given
        module, _, attribute = self.target.rpartition(":")
        owner = f"the plugin `{self.name}` of {f'{self.package} {self.version}'.strip()}"
        try:
            if not module:
                raise ValueError(f"`{self.target}` names no class; the form is module:Class")
            with confined(self.name):
                plugin: Any = _import_file(self.file) if self.file else importlib.import_module(module)
                for part in attribute.split("."):  # a module may define `__getattr__`
                    plugin = _attribute(plugin, part, module)
        except (KeyboardInterrupt, ImmediateStop):
            raise
        except BaseException as error:  # also a panic of a library in Rust, or a test library's skip
            what = f"{owner} cannot be imported: {type(error).__name__}: {error}{self._place(error)}"
            fix = "fix the file" if self.file else f"fix or reinstall {self.package}, or name another plugin"
            raise RecipeError([Problem(what, fix=fix)]) from error
        if not inspect.isclass(plugin):
            of_package = f" ({self.package} {self.version})" if self.version else ""
            raise RecipeError([Problem(f"`{self.target}`{of_package} is not a class", fix="a plugin is a dataclass")])
        return plugin

    def _place(self, error: BaseException) -> str:
        """Return, in brackets, the line of the plugin's own code that cannot be imported; empty where there is none."""
        if self.file:
            line = line_in(error, str(self.file))
            return f" ({self.file.name}, line {line})" if line else ""  # the form of a SyntaxError
        lines = [found for found in lines_of(error) if found[0].endswith(".py") and found[0] not in _IMPORTERS]
        return f" ({lines[-1][0]}:{lines[-1][1]})" if lines and not isinstance(error, SyntaxError) else ""


def _attribute(owner: Any, name: str, module: str) -> Any:
    """Return an attribute of a module or class. Raises AttributeError, which suggests a class, where there is none."""
    if not hasattr(owner, name):
        classes = [known for known, value in vars(owner).items() if inspect.isclass(value)]
        raise AttributeError(f"{module} has no `{name}`{did_you_mean(name, classes)}")
    return getattr(owner, name)


class _SourceOnly(SourceFileLoader):
    """Loader that writes no .pyc file, so that nothing is added to the user's folder."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Write nothing."""


def _import_file(path: Path) -> ModuleType:
    """Import a local file under a module name made from its path and content; unchanged content runs only once."""
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


_given: ContextVar[Sequence[Entry]] = ContextVar("entries of given classes", default=())


@contextmanager
def given_classes(classes: Sequence[type]) -> Iterator[None]:
    """Let recipes name these classes, each by its `__name__`, while the context lasts.

    Raises UsageError for what is no class, for two classes of one name, and for a name that neoplug ships.
    """
    owners = {entry.name: f"a plugin of {SHIPPED}" for entry in installed() if entry.package == SHIPPED}
    for cls in classes:
        if not inspect.isclass(cls):
            raise UsageError(f"`plugins` has {cls!r}, which is no class\nfix: give the class of the plugin")
        if owner := owners.get(cls.__name__):
            raise UsageError(f"`plugins` has a class `{cls.__name__}`, which is also {owner}\nfix: rename the class")
        owners[cls.__name__] = "another class of it"
    token = _given.set(
        [Entry(cls.__name__, cls.__module__, "", f"{cls.__module__}:{cls.__qualname__}", cls) for cls in classes]
    )
    try:
        yield
    finally:
        _given.reset(token)


def source_of(cls: type) -> str | None:
    """Return the source text of a class; None where there is none.

    Python finds no text of a class that a notebook's cell defines, but finds that of its methods.
    """
    with suppress(OSError, TypeError):
        return inspect.getsource(cls)
    methods = []
    for method in filter(inspect.isfunction, vars(cls).values()):
        with suppress(OSError, TypeError):
            methods.append(inspect.getsource(method))
    return "".join(methods) or None


def installed() -> list[Entry]:
    """List the entry points of group `neoplug`, sorted by name and package. Imports none of them."""
    from importlib.metadata import entry_points

    modified = tuple((folder, folder.stat().st_mtime_ns) for folder in map(Path, sys.path) if folder.exists())
    return list(_read_entries(entry_points, modified))


@lru_cache(maxsize=1)
def _read_entries(entry_points: Callable[..., Any], _: tuple[tuple[Path, int], ...]) -> list[Entry]:
    """Read the entry points of all installed packages, which is slow: only where a folder of sys.path was modified."""
    points = entry_points(group=GROUP)
    owners: dict[Any, tuple[str, str]] = {}
    for dist in {point.dist for point in points}:
        owners[dist] = (dist.name, dist.version) if dist else ("?", "")  # once each, since both parse a file
    # A value may end in the extras that the plugin needs, as "module:Class [extra]".
    entries = {Entry(point.name, *owners[point.dist], point.value.partition("[")[0].rstrip()) for point in points}
    return sorted(entries, key=lambda entry: (entry.name, entry.package, entry.target))


def find(name_in_recipe: str, base: Path) -> Entry:
    """Return the entry of a plugin by its name in a recipe. Imports nothing.

    base  the folder to which `./file.py:Class` is relative

    A name that neoplug ships is neoplug's, and one of a given class that class's, whatever else is installed: other
    packages' need `package:name`.

    Raises RecipeError for an unknown or ambiguous name, or a missing file.
    """
    name = _without_tag(name_in_recipe)
    if match := _FILE.fullmatch(name):
        return _find_file(match, base)
    entries = [*_given.get(), *installed()]
    package, _, short = name.rpartition(":")
    matches = [entry for entry in entries if entry.name == short and package in ("", entry.package)]
    matches = matches or [
        e for e in entries if e.name == short and package and canonical(e.package) == canonical(package)
    ]
    preferred = [entry for entry in matches if entry.given or entry.package == SHIPPED]
    if len(matches) == 1 or len(preferred) == 1:
        chosen, *others = sorted(matches, key=lambda entry: entry not in preferred)
        also = [f"`{entry.package}:{entry.name}` is installed too" for entry in others]
        also += [f"{files[-1]} is a module of that name"] if package and (files := module_files(package)) else []
        return replace(chosen, note=f"`{name}` is the plugin of {chosen.package}; {' and '.join(also)}" if also else "")
    if matches:
        full = [f"`{entry.package}:{entry.name}`" for entry in matches]
        raise RecipeError([Problem(f"several packages have a plugin `{short}`", fix=f"write {' or '.join(full)}")])
    names = sorted(
        {entry.name for entry in entries} | {f"{entry.package}:{entry.name}" for entry in entries if package}
    )
    if package and short.isidentifier() and module_files(package):
        return Entry(short, package, "", f"{package}:{short}")
    every = {entry.name for entry in entries}
    near = sorted(get_close_matches(short, every, n=NEAR, cutoff=0.5))
    more = f"{len(every) - len(near)} {'more' if near else 'plugins, none of a similar name'}"
    why = f"installed: {' and '.join([', '.join(near)] * bool(near) + [more] * (len(every) > len(near)))}"
    fix = "`neoplug plugins` lists what is installed; a file is `./file.py:Class`, a module `package.module:Class`"
    fix += (
        ""
        if package or not short.isidentifier()
        else f"; the class of a notebook is given in Python, `neoplug.run(..., plugins=[{short}])`"
    )
    raise RecipeError([Problem(f"no plugin is named `{name}`{did_you_mean(name, names)}", why, fix)])


def _without_tag(name_in_recipe: str) -> str:
    """Return the name without its `@tag`. Raises RecipeError for an invalid tag."""
    match = _FILE.match(name_in_recipe)
    start = match.end() if match else 0
    name, at, tag = name_in_recipe[start:].partition("@")
    if "@" in tag:
        raise RecipeError([Problem(f"`{name_in_recipe}` has two tags", fix="write name@tag, with one @")])
    if at and not _TAG.fullmatch(tag):
        raise RecipeError([Problem(f"`{tag}` is not a tag", fix="a tag is made of letters, digits, _ and -")])
    return name_in_recipe[:start] + name


def _find_file(match: re.Match[str], base: Path) -> Entry:
    """Return the entry of a plugin in a local file. Raises RecipeError where the file does not exist."""
    try:
        path = Path(match["file"]).expanduser()
        path = (base / path).resolve()
        exists = path.is_file()
    except (OSError, RuntimeError, ValueError):
        exists = False
    if not exists:
        raise RecipeError([Problem(f"there is no file {match['file']}", f"looked in {base}")])
    return Entry(match["attribute"], str(path), "", f"{path}:{match['attribute']}")


def canonical(package: str) -> str:
    """Return a distribution's name in the form in which PyPI compares names."""
    return re.sub(r"[-_.]+", "-", package).lower()
