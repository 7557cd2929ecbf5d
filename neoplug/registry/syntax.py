"""What the syntax tree of a plugin's file says of it: kind and description. Nothing is imported.

A class is read where its module imports it from, and so are its bases, whose hooks it inherits.
"""

import ast
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from neoplug.errors import did_you_mean
from neoplug.hookspecs import HOOKS_OF_SECTION
from neoplug.registry.discovery import Entry
from neoplug.registry.modules import module_files

MARKER = "hookimpl"
MOST_STEPS = 20  # from a name to the module that defines it, since imports may be circular
UNREADABLE = (OSError, SyntaxError, ValueError, RecursionError, MemoryError, LookupError)


@dataclass(frozen=True)
class Summary:
    """A plugin in one line.

    kind         the section of a recipe that it is made for; empty where its file does not say
    description  the first line of the docstring of its class, else of its module; empty without one
    fault        why its file cannot be read; empty where it can
    """

    kind: str = ""
    description: str = ""
    fault: str = ""


def summary(entry: Entry) -> Summary:
    """Return kind and description of a plugin, or why they cannot be read."""
    module, _, attribute = entry.target.rpartition(":")
    if not module:
        return Summary(fault=f"its entry point `{entry.target}` names no class; the form is module:Class")
    try:
        place = _Module("", _parsed(entry.file.read_bytes())) if entry.file else _module(module)
        owner, node = place.find(attribute.split("."))
    except UNREADABLE as error:
        return Summary(fault=_sentence(error))
    return Summary(kind_of(set(_hooks(owner, node, set()))), _first_line(node) or _first_line(owner.tree))


def kind_of(hooks: Collection[str]) -> str:
    """Return the section that has one of these hooks; empty where none has.

    Of several it is one that shares the hook with the fewest others; then one in whose list the hook comes earliest.
    """
    shared = Counter(chain.from_iterable(HOOKS_OF_SECTION.values()))
    ranks = {
        section: min((shared[hook], place) for place, hook in enumerate(listed) if hook in hooks)
        for section, listed in HOOKS_OF_SECTION.items()
        if set(listed) & set(hooks)
    }
    return min(ranks, key=ranks.__getitem__, default="")


def _sentence(error: BaseException) -> str:
    """Return why a file cannot be read."""
    if isinstance(error, SyntaxError):
        return f"syntax error in line {error.lineno}: {error.msg}"
    return str(error) if type(error) is LookupError else f"{type(error).__name__}: {error}"


@dataclass(frozen=True, eq=False)
class _Module:
    """A parsed file.

    package  from which relative imports start; empty for a local file
    """

    package: str
    tree: ast.Module

    def find(self, names: Sequence[str], steps: int = 0) -> tuple["_Module", ast.ClassDef]:
        """Return a class, given by the parts of its name, and the module that defines it.

        Raises LookupError where there is no such class; what `_module` raises, where another module has it.
        """
        statements = list(_statements(self.tree))
        classes = {node.name: node for node in statements if isinstance(node, ast.ClassDef)}
        if names[0] in classes:
            return self, _nested(classes[names[0]], names[1:])
        for known, there in self._imports(statements):
            if list(names[: len(known)]) == known and steps < MOST_STEPS:
                return _located([*there, *names[len(known) :]], steps + 1)
        raise LookupError(f"there is no class `{'.'.join(names)}` in it{did_you_mean(names[0], list(classes))}")

    def _imports(self, statements: Sequence[ast.AST]) -> Iterator[tuple[list[str], list[str]]]:
        """Yield the parts of each name that the module imports, and of the full name of what is imported."""
        for node in statements:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield (alias.asname or alias.name).split("."), alias.name.split(".")
            elif isinstance(node, ast.ImportFrom):
                package = self.package.split(".")[: 1 - node.level or None] if node.level else []
                for alias in node.names:
                    yield [alias.asname or alias.name], [*package, *(node.module or "").split("."), alias.name]


def _module(name: str) -> _Module:
    """Return a module. Raises one of UNREADABLE where there is no such module, or no source of it."""
    files = module_files(name)
    if not files:
        raise LookupError(f"there is no module {name}, or it has no file")
    if files[-1].suffix != ".py":
        raise LookupError(f"{files[-1].name} is no source text")
    is_package = files[-1].name == "__init__.py"
    return _Module(name if is_package else name.rpartition(".")[0], _parsed(files[-1].read_bytes()))


@lru_cache(maxsize=256)
def _parsed(source: bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in the file
        return ast.parse(source)


def _located(names: Sequence[str], steps: int) -> tuple[_Module, ast.ClassDef]:
    """Return a class by its full name, in the longest module that its name begins with."""
    names = list(filter(None, names))
    modules = (count for count in range(len(names) - 1, 0, -1) if module_files(".".join(names[:count])))
    count = next(modules, 0)
    if not count:
        raise LookupError(f"there is no module {'.'.join(names[:-1])}, or it has no file")
    return _module(".".join(names[:count])).find(names[count:], steps)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements of a module, also those in `if`, `try` and `with`, but not of its classes and functions."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _statements(child)


def _nested(node: ast.ClassDef, names: Sequence[str]) -> ast.ClassDef:
    """Return a class in another by the parts of its name there. Raises LookupError where there is none."""
    for name in names:
        inner = (part for part in node.body if isinstance(part, ast.ClassDef) and part.name == name)
        found = next(inner, None)
        if found is None:
            raise LookupError(f"there is no class `{name}` in `{node.name}`")
        node = found
    return node


def _hooks(owner: _Module, node: ast.ClassDef, seen: set[ast.ClassDef]) -> Iterator[str]:
    """Yield the hooks that a class and its bases implement; a base that cannot be read, or was seen, is left out."""
    if node in seen:
        return
    seen.add(node)
    for method in (part for part in node.body if isinstance(part, ast.FunctionDef)):
        for decorator in method.decorator_list:
            marker, words = (decorator.func, decorator.keywords) if isinstance(decorator, ast.Call) else (decorator, [])
            if ast.unparse(marker).rpartition(".")[2] == MARKER:
                specname = next((word.value for word in words if word.arg == "specname"), None)
                yield str(specname.value) if isinstance(specname, ast.Constant) else method.name
    for base in node.bases:
        name = base.value if isinstance(base, ast.Subscript) else base  # Generic[T]
        with suppress(*UNREADABLE):
            yield from _hooks(*owner.find(ast.unparse(name).split(".")), seen)


def _first_line(node: ast.Module | ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0].strip()
