"""The comments of options, written by hand here; the shipped plugins are compared with a search of their text."""

import inspect
import re
from dataclasses import dataclass, field
from typing import ClassVar

from neoplug.registry import installed
from neoplug.registry.comments import comments_of


@dataclass(eq=False)
class Parent:
    """A class: with # signs."""

    r: int = 8  # rank of the matrices
    scale: float = 1.0  # of the parent
    name: ClassVar[str] = "parent"  # no option
    # A line of its own is no comment of an option.
    bare: int = 0
    text: str = "# no comment"
    made: int = field(default=0, init=False)  # no option either


@dataclass(eq=False)
class Child(Parent):
    scale: float = 2.0  # of the child: a # sign and a | bar
    letters: list[str] = field(  # the first half,
        default_factory=list  # and the second
    )

    def method(self):
        local: int = 0  # no option
        return local


def test_an_option_has_the_comment_at_the_end_of_its_line():
    assert comments_of(Parent) == {"r": "rank of the matrices", "scale": "of the parent"}
    assert comments_of(Child) == {
        "r": "rank of the matrices",
        "scale": "of the child: a # sign and a | bar",
        "letters": "the first half, and the second",
    }


def test_a_class_without_source_has_none():
    assert comments_of(dataclass(type("Made", (), {"__annotations__": {"r": int}}))) == {}


def test_the_comments_of_shipped_plugins_are_found():
    found = 0
    for entry in installed():
        plugin = entry.load()
        for name, comment in comments_of(plugin).items():
            source = "".join(inspect.getsource(cls) for cls in plugin.__mro__[:-1])
            assert re.search(rf"^    {name}: .*# {re.escape(comment)}$", source, re.MULTILINE), (entry.name, name)
            found += 1
    assert found > 200
