"""Limits of recipes: hostile texts are refused with their place, messages are short, other files are not quoted."""

import os
import socket
from pathlib import Path

import pytest

from neoplug import recipe
from neoplug.errors import EXCERPT, SHOWN_PROBLEMS, RecipeError
from neoplug.recipe.limits import MAX_CHARACTERS, MAX_DEPTH, MAX_NODES, MAX_PLUGINS, MAX_SOURCES

START = "student: {model: hub/student}\ndata: {source: hub/data}\n"
SHORT = SHOWN_PROBLEMS * (EXCERPT * 3 + 1_000)  # characters: an excerpt is two lines


def refused(tmp_path, text, overrides=()):
    """Return the problems of a recipe with this text, and the message."""
    file = tmp_path / "r.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as error:
        recipe.load(file, overrides)
    assert error.value.exit_code == 2
    assert len(str(error.value)) < SHORT
    return error.value.problems, str(error.value)


def values(number):
    return f"[{', '.join(['1'] * number)}]"


DOUBLING = "a: 1\na: &b {v: 1}\na: &b0 [*b, *b]\n" + "".join(f"a: &b{k + 1} [*b{k}, *b{k}]\n" for k in range(40))


@pytest.mark.parametrize(
    ("text", "limit", "line"),
    [
        (DOUBLING, f"{MAX_NODES:,} values", 12),
        (f"a: {values(MAX_NODES)}", f"{MAX_NODES:,} values", 1),
        (f"a: &x {'z' * 1_000}\nb: [{', '.join(['*x'] * 1_000)}]", f"{MAX_CHARACTERS:,} characters", 2),
        (f"a: &x {{{'z' * 500}: 1}}\nb: [{', '.join(['*x'] * 1_000)}]", f"{MAX_CHARACTERS:,} characters", 2),
        ("# comment\n" * 1_000_000, f"{MAX_CHARACTERS:,} characters", 1),
        ("\n".join(" " * level + "a:" for level in range(100)), f"{MAX_DEPTH} levels", MAX_DEPTH + 2),
        ("- " * 90_000, f"{MAX_DEPTH} levels", 1),
        (START + f"loss: {{{', '.join(f'l{k}: {{}}' for k in range(MAX_PLUGINS + 1))}}}", f"{MAX_PLUGINS} plugins", 3),
        (
            "data:\n  sources: {" + ", ".join(f"s{k}: {{source: a}}" for k in range(MAX_SOURCES + 1)) + "}",
            f"{MAX_SOURCES:,} sources",
            2,
        ),
    ],
    ids=["doubling", "values", "long_alias", "long_key", "comments", "depth", "lists", "plugins", "sources"],
)
def test_what_is_too_large_is_refused_with_the_limit_and_its_place(tmp_path, text, limit, line):
    problems, _ = refused(tmp_path, text)
    (mark,) = [problem.mark for problem in problems if f"more than {limit}" in problem.what]
    assert (mark.file, mark.line) == (str(tmp_path / "r.yaml"), line)


def test_a_recipe_its_parent_and_its_overrides_are_counted_together(tmp_path):
    third = values(MAX_NODES // 3)
    (tmp_path / "parent.yaml").write_text(f"probes: {{a: {third}}}")
    problems, _ = refused(tmp_path, f"extends: parent.yaml\nseed: {third}")
    assert not any("more than" in problem.what for problem in problems)
    problems, _ = refused(tmp_path, f"extends: parent.yaml\nseed: {third}", [f"train.x={third}"])
    (mark,) = [problem.mark for problem in problems if f"more than {MAX_NODES:,} values" in problem.what]
    assert str(mark).startswith("override:1:")


@pytest.mark.parametrize(
    "override",
    [
        ".".join("a" * 10_000) + "=1",
        ".".join("~" * 10_000) + "=1",
        ".".join("a" * 20) + "=" + "[" * 20 + "]" * 20,
        "." * 10_000 + "=1",
        "a=" + "[" * 10_000,
    ],
)
def test_an_override_that_is_too_deep_is_refused(tmp_path, override):
    problems, _ = refused(tmp_path, START, [override])
    assert any(problem.mark.file == "override" for problem in problems)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"student:\n  model: caf\xe9\n", 2),
        (b"seed: 1\nstudent: {model: a\0b}\n", 2),
        ("student: {model: x}".encode("utf-16"), 1),
        (bytes(range(256)), 3),  # after the line breaks \\n and \\r
        (b"\xef\xbb\xbfseed: x\n", 1),
        ("seed: " + "7" * 100_000, 1),
        ("seed: 0x" + "f" * 100_000, 1),
        ("seed: " + ":".join(["59"] * 50_000), 1),
        ("train: {learning_rate: 1e" + "9" * 100_000 + "}", 1),
        ("seed: 1\n<<: {a: 1}", 2),
        ("seed: 2001-12-14t21:59:43.10-05:00", 1),
        ("seed: 1\n" + "? " * 90_000, 2),
    ],
)
def test_what_no_recipe_can_hold_is_refused_with_its_line(tmp_path, text, line):
    problems, message = refused(tmp_path, text)
    assert line in [problem.mark.line for problem in problems]
    assert f"{tmp_path}/r.yaml:{line}:" in message


@pytest.mark.parametrize(
    "text",
    [
        "{" + ", ".join(f"key{k}: 1" for k in range(2_400)) + "}",
        "\n".join(f"key{k}: null" for k in range(4_000)),
        START + "loss: {forward_kl: {" + ", ".join(f"o{k}: 1" for k in range(2_400)) + "}}",
        "a: [" + ", ".join(["!x 1"] * 4_000) + "]",
        "data:\n  sources:\n" + "".join(f"    s{k}: {{source: ./none{k}.jsonl}}\n" for k in range(900)),
    ],
    ids=["keys", "nulls", "options", "tags", "sources"],
)
def test_of_many_mistakes_a_few_are_shown_and_the_rest_is_counted(tmp_path, text):
    problems, message = refused(tmp_path, text)
    *shown, rest = message.split("\n\n")
    assert len(shown) == SHOWN_PROBLEMS
    assert rest == f"and {len(problems) - SHOWN_PROBLEMS:,} more mistakes"
    assert max(map(len, message.splitlines())) < 2_000


def test_a_long_value_is_cut_in_a_message(tmp_path):
    _, message = refused(tmp_path, f"seed: {'x' * 100_000}\n{'y' * 900}: 1\n")
    assert "must be a whole number" in message
    assert max(map(len, message.splitlines())) < 2_000


SECRET = "hunter2hunter2"
NO_RECIPES = {
    "environ": f"HOME=/root\0TOKEN={SECRET}\0",
    "passwd": f"root:x:0:0:{SECRET}:/root:/bin/sh\n",
    "id_rsa": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n",
    "pem": f"Proc-Type: 4,ENCRYPTED\nDEK-Info: {SECRET}\n\n\t{SECRET}: [",
    "secret.yaml": f"apiVersion: v1\nkind: Secret\ndata:\n  password: {SECRET}\n",
    "broken.yaml": f"apiVersion: v1\nkind: Secret\ndata:\n  password: {{{SECRET}\n",
    ".netrc": f"machine host login user password {SECRET}\n",
    "latin": f"caf\xe9 {SECRET}\n".encode("latin-1"),
    "list": f"- {SECRET}\n",
    "empty": "",
}


@pytest.mark.parametrize("name", NO_RECIPES)
def test_a_parent_that_is_no_recipe_is_not_quoted(tmp_path, name):
    content = NO_RECIPES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    problems, message = refused(tmp_path, f"{START}extends: ./{name}\n")
    assert f"r.yaml:3:10: `./{name}` is no recipe" in message
    assert SECRET not in message
    assert all(problem.mark.file == str(tmp_path / "r.yaml") for problem in problems)


def test_a_parent_with_mistakes_is_quoted(tmp_path):
    (tmp_path / "parent.yaml").write_text("seed: 1\ntrain: {max_steps: ]\n")
    _, message = refused(tmp_path, f"{START}extends: ./parent.yaml\n")
    assert "  2 | train: {max_steps: ]" in message


def test_what_is_no_regular_file_is_refused_and_never_opened(tmp_path, monkeypatch):
    """A pipe without a writer blocks whoever opens it; a socket cannot be opened."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    Path("loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jsonl")
        for name in ("pipe.jsonl", "socket.jsonl", "/dev/zero"):
            problems, _ = refused(tmp_path, f"{START}extends: {name}\n")
            assert any("cannot be read: it is no regular file" in problem.what for problem in problems)
            problems, _ = refused(tmp_path, f"student: {{model: hub/student}}\ndata: {{source: {name}}}\n")
            assert any("a pipe, a device or a socket" in problem.what for problem in problems)
    for name in ("/etc", "./loop", "x" * 300, "a/" * 3_000):
        problems, _ = refused(tmp_path, f"{START}extends: {name}\n")
        assert any("there is no recipe" in problem.what for problem in problems)
