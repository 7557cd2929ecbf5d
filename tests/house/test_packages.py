"""The packages of neoplug/: few top-level modules, a docstring each, no import cycles, and a bounded import depth."""

import ast
from graphlib import CycleError, TopologicalSorter
from itertools import groupby

import pytest

TOP_LEVEL = 6
DEPTH = 14


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


def package(module):
    """Return the package of a module directly below neoplug/, or the top-level module itself."""
    return ".".join(module.split(".")[:2])


@pytest.fixture(scope="module")
def packages(modules):
    """Return {package: the other packages that it imports}."""
    found = {}
    for module, others in modules.items():
        found.setdefault(package(module), set()).update(
            package(other) for other in others if package(other) != package(module)
        )
    return found


def depth(graph):
    """Return the length of the longest chain of a graph; raise CycleError for a graph with a cycle."""
    height = {}
    for node in TopologicalSorter(graph).static_order():
        height[node] = 1 + max((height[other] for other in graph.get(node, ())), default=0)
    return max(height.values())


def test_depth_is_the_length_of_the_longest_chain():
    assert depth({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"c"}}) == 3
    with pytest.raises(CycleError):
        depth({"a": {"b"}, "b": {"a"}})


def test_few_modules_are_top_level(core):
    top_level = [source.name for source in core if source.name.count("/") == 1]
    assert len(top_level) <= TOP_LEVEL, top_level


def test_modules_have_no_import_cycle_even_for_types(core):
    known = {module_name(source) for source in core}
    graph = {module_name(source): set(imported(source.tree, known, types=True)) for source in core}
    depth({module: others - {module} for module, others in graph.items()})  # raises CycleError with the cycle


def test_packages_have_no_import_cycle_and_a_bounded_depth(packages):
    assert depth(packages) <= DEPTH


def test_every_package_docstring_states_its_scope(core):
    packages = [source for source in core if source.name.endswith("/__init__.py") and source.name.count("/") > 1]

    def stated(source):
        text = " ".join((ast.get_docstring(source.tree) or "").split())
        return {phrase for phrase in ("Imported by", "Does not belong here") if phrase in text}

    incomplete = [source.name for source in packages if not {"Imported by", "Does not belong here"} <= stated(source)]
    assert not incomplete


def test_first_lines_differ(core):
    """A module's first line states its job, so no two modules have the same one."""
    first = sorted((ast.get_docstring(source.tree) or "").partition("\n")[0] for source in core)
    assert all(first)
    assert [line for line, same in groupby(first) if len(list(same)) > 1] == []
