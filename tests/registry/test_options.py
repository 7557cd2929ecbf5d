"""Options of plugins: strict validation, all mistakes at once, and an unchanged plugin class."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neoplug.errors import RecipeError
from neoplug.registry.options import build, first_named, options_model


@dataclass
class Inner:
    size: int = 1


@dataclass(eq=False)
class Everything:
    count: int
    rate: float = 0.5
    flag: bool = False
    name: str | None = None
    side: Literal["left", "right"] = "left"
    pair: tuple[float, float] = (0.9, 0.999)
    table: dict[str, int] = field(default_factory=dict)
    layers: int | list[int] | None = None
    inner: Inner = field(default_factory=Inner)
    schema: int = 0  # names that pydantic's models keep for themselves
    model_config: str = ""
    _hidden: int = 0
    made: list[int] = field(init=False, default_factory=list)

    def __post_init__(self):
        self.made.append(self.count)


def refused(cls, options, path=("adapter", "x")):
    with pytest.raises(RecipeError) as error:
        build(cls, options, path=path)
    return {problem.path[len(path) :]: problem.what for problem in error.value.problems}


def test_an_instance_is_of_the_authors_class_and_built_once():
    plugin = build(
        Everything, {"count": 8, "rate": 1, "pair": [0.5, 1], "schema": 3, "model_config": "m", "_hidden": 4}
    )
    assert type(plugin) is Everything
    assert plugin.made == [8]
    assert (plugin.rate, plugin.pair, plugin.schema, plugin.model_config, plugin._hidden) == (
        1.0,
        (0.5, 1.0),
        3,
        "m",
        4,
    )
    assert type(plugin.rate) is float
    assert build(Everything, {"count": 1}).table is not build(Everything, {"count": 1}).table


@pytest.mark.parametrize(
    ("options", "place", "words"),
    [
        ({"count": True}, ("count",), "`count` is true, but must be a whole number"),
        ({"count": 8.0}, ("count",), "`count` is 8.0, but must be a whole number"),
        ({"count": "8"}, ("count",), '`count` is "8", but must be a whole number'),
        ({"count": None}, ("count",), "`count` is null, but must be a whole number"),
        ({}, ("count",), "`count` is missing"),
        ({"count": 1, "rate": True}, ("rate",), "`rate` is true, but must be a number"),
        ({"count": 1, "rate": "0.5"}, ("rate",), '`rate` is "0.5", but must be a number'),
        ({"count": 1, "rate": float("nan")}, ("rate",), "`rate` is nan, but must be a finite number"),
        ({"count": 1, "rate": float("inf")}, ("rate",), "`rate` is inf, but must be a finite number"),
        ({"count": 1, "flag": 1}, ("flag",), "`flag` is 1, but must be true or false"),
        ({"count": 1, "flag": "on"}, ("flag",), '`flag` is "on", but must be true or false'),
        ({"count": 1, "name": 1}, ("name",), "`name` is 1, but must be text"),
        ({"count": 1, "side": "lefd"}, ("side",),
         '`side` is "lefd", but must be one of left, right; did you mean `left`?'),
        ({"count": 1, "pair": 1}, ("pair",), "`pair` is 1, but must be a list"),
        ({"count": 1, "table": {"a": "b"}}, ("table", "a"), '`a` is "b", but must be a whole number'),
        ({"count": 1, "layers": "all"}, ("layers",), '`layers` is "all", but must be a whole number or a list'),
        ({"count": 1, "layers": [1, "b"]}, ("layers", 1), '`layers[1]` is "b", but must be a whole number'),
        ({"count": 1, "inner": {"sise": 2}}, ("inner", "sise"), "unknown key `sise`"),
        ({"count": 1, "cuont": 2}, ("cuont",), "unknown key `cuont`; did you mean `count`?"),
        ({"count": 1, "made": [2]}, ("made",), "unknown key `made`"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_reported_with_what_it_must_be(options, place, words):
    assert refused(Everything, options) == {place: words}


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"rate": "1e-4"}, "write 1e-4 without quotes"),
        ({"rate": "1_000"}, "write 1000"),
        ({"rate": "fast"}, "leave it out for the default, 0.5"),
        ({"rate": True}, "leave it out for the default, 0.5"),
        ({"rate": float("nan")}, "leave it out for the default, 0.5"),
        ({"schema": 8.0}, "write 8"),
        ({"schema": 8.5}, "write 8 or 9"),
        ({"schema": "8"}, "write 8 without quotes"),
        ({"schema": "8.0"}, "write 8"),
        ({"schema": 1e300}, "leave it out for the default, 0"),
        ({"schema": None}, "leave it out for the default, 0"),
        ({"flag": "Yes"}, "write true"),
        ({"flag": 0}, "write false"),
        ({"flag": "maybe"}, "leave it out for the default, false"),
        ({"name": 7}, 'put it in quotes: "7"'),
        ({"name": True}, 'put it in quotes: "true"'),
        ({"layers": "q_proj"}, "write [q_proj]"),
        ({"table": [1]}, "a map is written {key: value}"),
        ({"side": "Left"}, ""),  # its values are named
        ({"table": {"a": "b"}}, ""),
    ],
)
def test_a_fix_is_suggested_where_it_is_certain(options, fix):
    with pytest.raises(RecipeError) as error:
        build(Everything, {"count": 1, **options})
    (problem,) = error.value.problems
    assert problem.fix == fix
    boolean = any(value is True for value in options.values()) and "number" in problem.what
    assert problem.why == ("true and false are not numbers" if boolean else "")


@pytest.mark.parametrize(("wrong", "meant"), [("LEFT", "left"), ("rihgt", "right")])
def test_the_nearest_literal_is_suggested_whatever_its_case(wrong, meant):
    assert refused(Everything, {"count": 1, "side": wrong})[("side",)].endswith(f"; did you mean `{meant}`?")


class Side(Enum):
    LEFT = "left"
    RIGHT = "right"


@dataclass(eq=False)
class Chosen:
    side: Side = Side.LEFT


def test_an_enumeration_is_read_by_its_values():
    assert build(Chosen, {"side": "right"}).side is Side.RIGHT
    what = '`side` is "rihgt", but must be one of left, right; did you mean `right`?'
    assert refused(Chosen, {"side": "rihgt"}) == {("side",): what}


def test_all_mistakes_are_reported_at_once():
    found = refused(Everything, {"rate": "a", "flag": 0, "nmae": "x", "inner": {"size": True}})
    assert set(found) == {("count",), ("rate",), ("flag",), ("nmae",), ("inner", "size")}


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.lists(st.integers() | st.text(), max_size=3)
)


@given(st.dictionaries(st.sampled_from(["count", "rate", "flag", "name", "side", "layers", "other"]), VALUES))
def test_a_built_plugin_has_the_declared_types(options):
    try:
        plugin = build(Everything, options)
    except RecipeError:
        return
    assert type(plugin.count) is int
    assert type(plugin.rate) is float
    assert abs(plugin.rate) < float("inf")
    assert type(plugin.flag) is bool
    assert plugin.side in ("left", "right")
    assert "other" not in options


@dataclass(eq=False)
class Refusing:
    beta: float = 0.5
    alphabet: str = "a"
    kind: str = "value"

    def __post_init__(self):
        if self.kind == "type":
            raise TypeError("no")
        if self.beta > 1:
            raise ValueError(f"alphabets matter, but beta is {self.beta} and alphabet is {self.alphabet}")
        if self.beta < 0:
            raise ValueError("")


def test_a_constructors_error_is_reported_at_the_option_it_names():
    assert refused(Refusing, {"alphabet": "b", "beta": 2.0}) == {
        ("beta",): "alphabets matter, but beta is 2.0 and alphabet is b"
    }
    line = line_of('TypeError("no")')
    assert refused(Refusing, {"kind": "type"}) == {(): f"Refusing cannot be built: TypeError: no ({__file__}:{line})"}
    assert refused(Refusing, {"beta": -1.0}) == {(): "ValueError"}


@dataclass(eq=False)
class Odd:
    device: "NoSuchName" = None  # noqa: F821


@dataclass(eq=False)
class Odder:
    thing: Odd.__class__.mro = None  # type: ignore[name-defined]


@pytest.mark.parametrize("cls", [Odd, Odder])
def test_option_types_that_no_recipe_can_express_are_a_problem(cls):
    assert "cannot be read from a recipe" in refused(cls, {})[()]


def line_of(text):
    """Return the first line of this file that holds a text."""
    return next(number for number, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line)


def test_a_type_that_no_recipe_can_express_is_named_with_option_and_line():
    found = {cls: refused(cls, {})[()] for cls in (Odd, Odder, Inherits)}
    for cls, name, text in ((Odd, "device", 'device: "NoSuchName"'), (Odder, "thing", "thing: Odd.__class__"),
                            (Inherits, "device", 'device: "NoSuchName"')):  # fmt: skip
        start = f"the option `{name}` of {cls.__name__} cannot be read"
        assert found[cls].startswith(start)
        assert f"({__file__}:{line_of(text)})" in found[cls]


@dataclass(eq=False)
class Inherits(Odd):
    count: int = 1


@dataclass(eq=False)
class Unannotated:
    strength: float = 1.0
    temperature = 2.0

    def method(self):
        return self.temperature


def test_an_option_without_annotation_is_named_as_that():
    found = refused(Unannotated, {"temperature": 3.0})
    assert found == {
        ("temperature",): f"`temperature` of Unannotated has no annotation ({__file__}:{line_of('= 2.0')})"
    }
    assert "unknown key" in refused(Unannotated, {"method": 1})[("method",)]
    assert "unknown key" in refused(Unannotated, {"strengths": 1})[("strengths",)]


@dataclass(eq=False)
class Crashing:
    text: str = "1"

    def __post_init__(self):
        if self.text == "exit":
            raise SystemExit(3)
        self.number = {"a": 1}[self.text] if self.text == "b" else int(self.text)


@pytest.mark.parametrize(
    ("text", "kind", "where"),
    [("b", "KeyError", '{"a": 1}'), ("x", "ValueError", '{"a": 1}'), ("exit", "SystemExit", "raise SystemExit")],
)
def test_a_crash_in_a_constructor_names_file_and_line(text, kind, where):
    (what,) = refused(Crashing, {"text": text}).values()
    assert what.startswith(f"Crashing cannot be built: {kind}: ")
    assert what.endswith(f"({__file__}:{line_of(where)})")


@pytest.mark.parametrize(
    ("message", "name"),
    [("r is 0", "r"), ("the error: r", "r"), ("lora_r is 0", None), ("`lora_alpha` and r", "lora_alpha"), ("", None)],
)
def test_only_whole_words_count_as_names(message, name):
    assert first_named(message, ["r", "lora_alpha", ""]) == name


def test_the_model_lists_the_options_by_their_names():
    properties = options_model(Everything).model_json_schema()["properties"]
    assert list(properties)[:3] == ["count", "rate", "flag"]
    assert properties["rate"]["default"] == 0.5
    assert "made" not in properties
