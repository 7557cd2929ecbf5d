"""The YAML reader: YAML 1.2 scalars, safe loading, and the position of every value."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from neoplug.errors import EXCERPT
from neoplug.recipe.limits import MAX_NODES
from neoplug.recipe.tree import BROKEN
from neoplug.recipe.yaml_reader import YamlText, read


def parse(text):
    tree = read(YamlText(text, "r.yaml", Path("/r")))
    return tree.values, tree


def value_of(text):
    value, tree = parse(f"key: {text}")
    assert not tree.problems
    return value["key"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("2.0e-4", 2e-4), (".5", 0.5), ("5.", 5.0), ("-1", -1), ("+3", 3), ("0o17", 15),
        ("0x1F", 31), ("007", 7), ("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"), ("y", "y"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("1_000", "1_000"),
        ("12:30:45", "12:30:45"), ("2024-01-01", "2024-01-01"), ("'8'", "8"), ('"true"', "true"), ("1e", "1e"),
        ("0b11", "0b11"), (".inf", math.inf), ("-.INF", -math.inf), ("1e999", math.inf), ("[1, a]", [1, "a"]),
        ("{a: {}}", {"a": {}}), ("|\n  a\n  b", "a\nb"), ("9223372036854775807", 2**63 - 1), ("=", "="), ("<<", "<<"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text, expected):
    found = value_of(text)
    assert found == expected
    assert type(found) is type(expected)


def test_nan_is_a_number_that_types_refuse():
    assert math.isnan(value_of(".nan"))


def is_number(text):
    try:
        float(text.replace("_", "x"))
    except ValueError:
        return False
    return True


LETTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])  # a recipe refuses NUL
TEXT = st.text(LETTERS).filter(lambda text: not is_number(text))  # PyYAML writes 1e-4 as text, recipes read a number
KEYS = TEXT.filter(lambda key: key != "<<")  # a merge key, which recipes do not support
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, PLAIN, max_size=4), st.booleans())
def test_yaml_written_by_pyyaml_is_read_back(values, flow):
    text = yaml.safe_dump(values, allow_unicode=True, default_flow_style=flow)
    found, tree = parse(text)
    assert not tree.problems
    assert found == yaml.safe_load(text)


@given(st.dictionaries(KEYS, PLAIN, max_size=4), st.booleans())
def test_every_value_has_the_correct_position(values, flow):
    text = yaml.safe_dump(values, allow_unicode=False, default_flow_style=flow)
    value, tree = parse(text)

    def check(node, path):
        place = tree.node(path)
        assert 1 <= place.key.line <= text.count("\n") + 1
        if isinstance(node, dict):
            for key, inner in node.items():
                mark = tree.node((*path, key)).key
                shown = mark.text[mark.column - 1 :][: mark.length]
                if key.isidentifier() and key.isascii() and not shown.startswith("?"):
                    assert shown.strip("\"'") == key
                check(inner, (*path, key))
        if isinstance(node, list):
            for number, inner in enumerate(node):
                check(inner, (*path, number))

    check(value, ())


@given(st.text())
def test_any_text_is_a_value_or_a_problem(text):
    value, tree = parse(text)
    if value is BROKEN:
        assert tree.problems
    for problem in tree.problems:
        assert str(problem)
        assert problem.mark.file == "r.yaml"


@given(st.text(alphabet="&*!|>-:{}[],?'\"#%@ \n\tab1<", max_size=40))
def test_any_yaml_like_text_is_a_value_or_a_problem(text):
    value, tree = parse(text)
    assert value is not BROKEN or tree.problems


def test_a_mark_is_one_based_and_its_caret_is_under_the_value():
    _, tree = parse("a: 1\nbé:\n  c: {d: [1, two]}\n")
    mark = tree.mark(("bé", "c", "d", 1), value=True)
    assert str(mark) == "r.yaml:3:14"
    assert mark.excerpt() == "  3 |   c: {d: [1, two]}\n    |              ^^^"


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("before", [1, 5, 1000, 4990])
def test_a_long_line_is_truncated_around_its_caret_to_a_width(before, width):
    text = f"a: [{'x' * before}, KEY, {'y' * (5000 - before)}]"
    _, tree = parse(text)
    mark = tree.mark(("a", 1), value=True)
    line, carets = mark.excerpt().split("\n")
    assert len(line) <= EXCERPT
    assert line[carets.index("^") : carets.rindex("^") + 1] == "KEY"
    line, carets = mark.excerpt(width).split("\n")
    assert len(line) <= width
    assert line[carets.index("^") : carets.rindex("^") + 1] == "KEY"
    assert " ... " in line
    long = tree.mark(("a", 2), value=True).excerpt(width).split("\n")
    assert max(map(len, long)) <= width


def test_a_missing_path_is_marked_at_its_nearest_ancestor():
    _, tree = parse("a:\n  b: 1\n")
    assert str(tree.mark(("a", "b", "c"))) == "r.yaml:2:3"
    assert str(tree.mark(("a", "x", "y"), value=True)) == "r.yaml:1:1"
    assert str(tree.mark(("x",))) == "r.yaml:1:1"


def test_a_duplicate_key_is_refused_in_any_notation():
    value, tree = parse("a: {b: 1, 'b': 2}\na: 3\nc: !x 1\nc: 2\n")
    assert value == {"a": {"b": 1}}
    assert [str(problem.mark) for problem in tree.problems] == ["r.yaml:1:11", "r.yaml:2:1", "r.yaml:3:4", "r.yaml:4:1"]
    assert "the first is in line 1" in tree.problems[0].what


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!x", "!!int", "!!map", "!<tag:yaml.org,2002:str>"])
def test_tags_are_never_executed(tag, tmp_path):
    value, tree = parse(f"a: {tag} [touch {tmp_path}/pwned]\nb: 1")
    assert value == {"b": 1}
    assert [problem.what for problem in tree.problems] == [f"`{tag}` cannot be in a recipe"]
    assert tree.is_broken(("a",))
    assert tree.is_broken(("a", "below"))
    assert not tree.is_broken(("b",))
    assert not list(tmp_path.iterdir())


def test_an_alias_is_a_copy_with_its_own_position():
    value, tree = parse("a: &x {b: [1]}\nc: *x\n")
    assert value == {"a": {"b": [1]}, "c": {"b": [1]}}
    assert value["a"] is not value["c"]
    assert str(tree.mark(("c",), value=True)) == "r.yaml:2:4"
    assert str(tree.mark(("c", "b", 0))) == "r.yaml:1:12"


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: &x {b: {c: *x}}", "&x a: *x"])
def test_an_alias_that_loops_is_refused(text):
    _, tree = parse(text)
    assert len(tree.problems) in (1, 2)


def test_aliases_that_expand_exponentially_stop_early():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    value, tree = parse("\n".join(lines))
    assert value is BROKEN
    assert f"{MAX_NODES:,}" in tree.problems[0].what


def test_depth_and_size_are_bounded():
    for text in ("[" * 100_000, "a: " + "{b: " * 500, "- " * 5_000, "x" * 300_000, "[" + "1," * 90_000 + "]"):
        value, tree = parse(text)
        assert value is BROKEN
        assert len(tree.problems) == 1


@pytest.mark.parametrize("digits", [20, 400, 5_000])
def test_a_long_integer_is_refused_as_text(digits):
    for text in ("7" * digits, "-" + "7" * digits, "0x" + "f" * digits):
        value, tree = parse(f"a: {text}")
        assert value == {}
        assert "too large" in tree.problems[0].what
    assert value_of(f"'{'7' * digits}'") == "7" * digits


@pytest.mark.parametrize(
    "text", ["a: \0", "a: \x1b[31m", "a: [1", "a:\n\t- b", "\ud800", "a: 'x", "a: b: c", "%X\n---\n", "@a"]
)
def test_invalid_yaml_is_one_printable_problem(text):
    value, tree = parse(text)
    assert value is BROKEN
    (problem,) = tree.problems
    assert str(problem).replace("\n", "").isprintable()


@pytest.mark.parametrize("key", ["? [a]\n: 1", "{a: 1}: 2", "&x a: 1", "!t a: 1", "<<: {a: 1}", "b: &x 1\n*x : 2"])
def test_a_key_is_plain_text(key):
    _, tree = parse(key)
    assert tree.problems


def test_a_second_document_is_refused():
    value, tree = parse("a: 1\n---\nb: 2\n")
    assert value is BROKEN
    assert str(tree.problems[0].mark) == "r.yaml:2:1"


def test_a_prefix_shifts_columns_but_not_lines():
    tree = read(YamlText("{a: 1}", "override", Path(), lead="adapter.x=", line=3))
    assert str(tree.mark(("a",))) == "override:3:12"
    assert tree.mark(("a",)).text == "adapter.x={a: 1}"
