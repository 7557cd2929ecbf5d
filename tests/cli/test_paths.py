"""Paths that no system can have, or that never end: each is refused in a sentence, in every key and argument."""

import json
from pathlib import Path

import pytest

from neoplug.errors import DiskError
from neoplug.files import folder_atomically
from neoplug.files.atomic import too_long

NAMES = {
    "long": "x" * 300,
    "longer": "x" * 5_000,
    "deep": "a/" * 3_000 + "x",
    "loop": "./loop",
    "below_loop": "./loop/x",
    "nul": "a\0b",
    "absolute_long": "/tmp/" + "x" * 300 + "/y",
    "no_user": "~nobody-of-this-name/x",
    "file_as_folder": "./tiny.yaml/x",
}
KEYS = [
    *("teacher.model", "student.model", "student.adapter_path", "data.source", "data.eval_source"),
    *("teacher.chat_template", "data.chat_template", "data.sources"),
]


@pytest.fixture
def folder(recipe, monkeypatch):
    """Return the folder of the recipe, as the current one, with a link that names itself."""
    monkeypatch.chdir(recipe.parent)
    Path("loop").symlink_to("loop")
    return recipe.parent


def in_sentences(answer):
    """Return whether the error names the fault, and is no name of an exception."""
    return answer.err and "Error" not in answer.err and "Errno" not in answer.err


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("suffix", ["", ".jsonl"])
def test_a_path_in_a_recipe_is_refused(neoplug, folder, key, name, suffix):
    value = NAMES[name] + suffix
    if key == "data.sources":
        text = f"extends: ./tiny.yaml\ndata: {{source: null, sources: {{a: {{source: {json.dumps(value)}}}}}}}\n"
    else:
        first, _, rest = key.partition(".")
        text = f"extends: ./tiny.yaml\n{first}: {f'{{{rest}: {json.dumps(value)}}}' if rest else json.dumps(value)}\n"
    (folder / "r.yaml").write_text(text)
    answer = neoplug("plan", "r.yaml")
    assert answer.code == 2
    assert answer.err.startswith("r.yaml:2:")
    assert in_sentences(answer), answer.err


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("nul", "no_user")])
@pytest.mark.parametrize(
    "command",
    [
        ["plan"],
        ["preview"],
        ["run", "tiny.yaml", "--output"],
        ["run", "tiny.yaml", "--resume", "--output"],
        ["export"],
        ["eval"],
        ["push"],
        ["check"],
        ["plugins"],
    ],
    ids=" ".join,
)
def test_a_path_on_the_command_line_is_refused(neoplug, folder, command, name):
    more = {"export": ["out"], "eval": ["tiny.yaml"], "push": ["user/name"]}.get(command[0], [])
    answer = neoplug(*command, NAMES[name], *more)
    assert answer.code in (1, 2)
    assert in_sentences(answer), answer.err


def test_no_text_of_a_recipe_holds_nul(neoplug, folder):
    (folder / "r.yaml").write_text('extends: ./tiny.yaml\noutput_dir: "a\\0b"\n')
    assert neoplug("plan", "r.yaml").err.startswith("r.yaml:2:13: a text cannot hold the character `\\0`")


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_file_is_refused(neoplug, folder, name):
    (folder / "r.yaml").write_text(f"extends: ./tiny.yaml\nprobes: {{{json.dumps(f'{NAMES[name]}.py:Probe')}: {{}}}}\n")
    answer = neoplug("plan", "r.yaml")
    assert answer.code == 2
    assert in_sentences(answer), answer.err


OUTPUTS = ["x" * 300, "x" * 250, "new/" + "x" * 300 + "/y", "a/" * 3_000 + "x", "a/" * 2_000]


@pytest.mark.parametrize("output", OUTPUTS, ids=["name", "name of a draft", "name above", "path", "path of a file"])
def test_an_output_that_is_too_long_is_refused_before_a_model_is_loaded(neoplug, folder, output, monkeypatch):
    monkeypatch.setattr("neoplug.models.resolve.locate", None)
    (folder / "r.yaml").write_text(f"extends: ./tiny.yaml\noutput_dir: {output}\n")
    for command in ("plan", "run"):
        answer = neoplug(command, "r.yaml")
        assert answer.code == 2
        assert answer.err.startswith("r.yaml:2:13: the run cannot be written to `output_dir`")
        assert "bytes, and " in answer.err
    answer = neoplug("run", "tiny.yaml", "--output", output)
    assert answer.code == 2
    assert "cannot be created\nwhy: " in answer.err
    assert "bytes, and " in answer.err
    assert not (folder / "new").exists()


def test_what_is_not_too_long_can_be_written(tmp_path):
    """The file system itself is asked."""
    longest = max(length for length in range(1, 300) if not too_long(tmp_path / ("x" * length)))
    with folder_atomically(tmp_path / ("x" * longest)) as draft:
        (draft / "file").write_text("content")
    with pytest.raises(DiskError, match="too long"), folder_atomically(tmp_path / ("x" * (longest + 1))):
        pass
    above = tmp_path.joinpath(*["d" * 99] * 38)
    deepest = max((above / ("x" * length) for length in range(1, 200) if not too_long(above / ("x" * length))), key=str)
    with folder_atomically(deepest) as draft:
        (draft / ("f" * 180)).write_text("content")
    assert (deepest / ("f" * 180)).read_text() == "content"
