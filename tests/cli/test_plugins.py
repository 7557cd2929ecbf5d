"""`plugins`: a list without imports, and the description of one."""

import json
import sys
from importlib.metadata import entry_points

import pytest

from neoplug.hookspecs import HOOKS_OF_SECTION


def test_the_list_has_every_entry_point(neoplug):
    listed = {
        (row["name"], row["package"], row["version"], row["target"])
        for row in json.loads(neoplug("plugins", "--json").out)
    }
    assert listed == {(p.name, p.dist.name, p.dist.version, p.value) for p in entry_points(group="neoplug")}
    rows = [line.split() for line in neoplug("plugins").out.splitlines()[1:] if line.startswith("  ")]
    assert sorted(tuple(row[:3]) for row in rows) == sorted(point[:3] for point in listed)


def test_the_list_imports_no_plugin(neoplug, third_party):
    answer = neoplug("plugins")
    assert answer.code == 0
    assert answer.err == ""
    assert {"hinge", "broken"} <= {line.split()[0] for line in answer.out.splitlines()}
    assert not {"example_loss", "example_broken"} & set(sys.modules)


def test_the_list_is_grouped_by_kind_and_says_what_each_plugin_is(neoplug, third_party):
    (third_party / "example_broken.py").write_text('"""Half a file."""\n\ndef :\n')
    groups = {}
    for line in neoplug("plugins").out.splitlines()[1:]:
        if line and not line.startswith(" "):
            groups[line] = rows = []
        elif line:
            rows.append(line.split(maxsplit=3))
    assert [*groups] == [*HOOKS_OF_SECTION, "unknown kind"]
    assert ["hinge", "example-plugins", "1.2", "One sided."] in groups["loss"]
    assert ["broken", "example-plugins", "1.2", "no description: syntax error in line 3: invalid syntax"] in groups[
        "unknown kind"
    ]
    assert {"lora", "full", "loraplus"} <= {name for name, *_ in groups["adapter"]}
    rows = {row["name"]: row for row in json.loads(neoplug("plugins", "--json").out)}
    assert (rows["hinge"]["kind"], rows["hinge"]["description"], rows["hinge"]["fault"]) == ("loss", "One sided.", None)
    assert (rows["broken"]["kind"], rows["broken"]["description"]) == (None, None)
    assert rows["broken"]["fault"] == "syntax error in line 3: invalid syntax"
    assert not {"example_loss", "example_broken"} & set(sys.modules)


def test_a_section_filters_and_reports_plugins_that_cannot_be_imported(neoplug, third_party):
    answer = neoplug("plugins", "--section", "loss", "--json")
    names = [row["name"] for row in json.loads(answer.out)]
    assert {"hinge", "forward_kl", "jsd"} <= set(names)
    assert not {"broken", "lora", "adamw"} & set(names)
    assert answer.code == 0
    (line,) = [line for line in answer.err.splitlines() if "broken" in line]
    for part in ("example-plugins", "1.2", "no_such_module_anywhere"):
        assert part in line


def test_a_plugin_is_shown_with_options_hooks_docstring_and_source(neoplug, third_party):
    found = json.loads(neoplug("plugins", "hinge", "--json").out)
    assert found == {
        "name": "hinge",
        "package": "example-plugins",
        "version": "1.2",
        "target": "example_loss:Hinge",
        "sections": ["loss"],
        "options": [
            {"name": "margin", "type": "float"},
            {"name": "power", "type": "int", "default": 2},
            {"name": "names", "type": "list[str]", "default": []},
        ],
        "hooks": {"token_loss": "each loss"},
        "docstring": "Hinge, for a test.\n\nOne sided.",
        "source": str(third_party / "example_loss.py"),
    }
    text = neoplug("plugins", "hinge").out
    for part in ("margin  float      required", "power   int        default 2", "token_loss", "Hinge, for a test."):
        assert part in text


def test_the_comment_of_an_option_is_shown_and_in_the_schema(neoplug):
    comment = "of each label, in [0, 1]"  # after the option in its file
    (option,) = json.loads(neoplug("plugins", "label_noise", "--json").out)["options"]
    assert option["comment"] == comment
    assert f"  probability  float  required  {comment}\n" in neoplug("plugins", "label_noise").out
    schema = json.loads(neoplug("schema").out)["$defs"]["treatments.neoplug:label_noise"]
    assert schema["properties"]["probability"]["description"] == comment


def test_a_plugin_in_a_local_file_is_shown_too(neoplug, third_party, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text((third_party / "example_loss.py").read_text())
    found = json.loads(neoplug("plugins", "./mine.py:Hinge", "--json").out)
    assert found["source"] == str(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["broken"], "no_such_module_anywhere"),
        (["hindge"], "hinge"),
        (["--section", "losses"], "loss"),
        (["hinge", "--section", "loss"], "not both"),
    ],
)
def test_an_unknown_plugin_or_section_exits_2_with_the_reason(neoplug, third_party, arguments, reason):
    answer = neoplug("plugins", *arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert reason in answer.err
    assert "Traceback" not in answer.err
