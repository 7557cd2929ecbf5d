"""The rooms of neoplug/: few loose modules, a docstring each, no circles, and a short longest chain of imports."""

import ast
from graphlib import CycleError, TopologicalSorter
from itertools import groupby

import pytest

LOOSE = 6
FLOORS = 14


def module_name(source):
    return source.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def is_typing_block(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(tree, known, types=False):
    """Yield the modules of the core that a module imports, inside functions too; those for types alone with `types`."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if is_typing_block(node) and not types:
            todo += node.orelse
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in names if node.module in known)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        todo += ast.iter_child_nodes(node)


@pytest.fixture(scope="module")
def modules(core):
    """Return {module: the modules that it imports}."""
    known = {module_name(source) for source in core}
    return {module_name(source): set(imported(source.tree, known)) for source in core}


def room(module):
    """Return the folder of a module directly below neoplug/, or the loose module itself."""
    return ".".join(module.split(".")[:2])


@pytest.fixture(scope="module")
def rooms(modules):
    """Return {room: the other rooms that it imports}."""
    found = {}
    for module, others in modules.items():
        found.setdefault(room(module), set()).update(room(other) for other in others if room(other) != room(module))
    return found


def floors(graph):
    """Return how many steps the longest chain of a graph without circles has."""
    height = {}
    for node in TopologicalSorter(graph).static_order():
        height[node] = 1 + max((height[other] for other in graph.get(node, ())), default=0)
    return max(height.values())


def test_a_chain_is_counted_by_its_links():
    assert floors({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"c"}}) == 3
    with pytest.raises(CycleError):
        floors({"a": {"b"}, "b": {"a"}})


def test_few_modules_are_loose(core):
    loose = [source.name for source in core if source.name.count("/") == 1]
    assert len(loose) <= LOOSE, loose


def test_no_module_imports_itself_through_others_not_even_for_types(core):
    known = {module_name(source) for source in core}
    graph = {module_name(source): set(imported(source.tree, known, types=True)) for source in core}
    floors({module: others - {module} for module, others in graph.items()})  # raises CycleError with the circle


def test_no_room_imports_itself_through_others_and_the_chain_is_short(rooms):
    assert floors(rooms) <= FLOORS


def test_every_room_says_what_it_is_for(core):
    packages = [source for source in core if source.name.endswith("/__init__.py") and source.name.count("/") > 1]

    def said(source):
        text = " ".join((ast.get_docstring(source.tree) or "").split())
        return {phrase for phrase in ("Imported by", "Does not belong here") if phrase in text}

    vague = [source.name for source in packages if not {"Imported by", "Does not belong here"} <= said(source)]
    assert not vague


def test_first_lines_differ(core):
    """A module's first line says its job, so that no two modules have the same one."""
    first = sorted((ast.get_docstring(source.tree) or "").partition("\n")[0] for source in core)
    assert all(first)
    assert [line for line, same in groupby(first) if len(list(same)) > 1] == []
