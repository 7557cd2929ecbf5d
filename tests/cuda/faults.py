"""Faults planted into functions of this process: a line of their source is replaced."""

import __future__

import ast
import inspect
import textwrap
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def planted(function, old, new):
    """Run the function `module:qualified.name` with `new` in place of `old`, inside the block.

    Its code is replaced, and not the name: other modules have imported the function by then.
    """
    module, name = function.split(":")
    target = import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    target = inspect.unwrap(target)
    source = textwrap.dedent(inspect.getsource(target))
    assert source.count(old) == 1, f"{function} has {source.count(old)} times: {old}"
    tree = ast.parse(source.replace(old, new))
    tree.body[0].decorator_list = []
    ast.increment_lineno(tree, target.__code__.co_firstlineno - 1)
    names, file = dict(target.__globals__), target.__code__.co_filename
    exec(compile(tree, file, "exec", __future__.annotations.compiler_flag), names)
    code = target.__code__
    target.__code__ = names[target.__name__].__code__
    try:
        yield
    finally:
        target.__code__ = code
