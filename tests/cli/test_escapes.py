"""What is printed for people holds no control characters, whatever is in recipes, names, data, logs and warnings."""

import io
import json
import logging
import sys
import unicodedata
import warnings

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from neoplug.cli import format_warning, watch
from neoplug.cli.screen import echo_json
from neoplug.runs.model_card import code, fenced

HOSTILE = "a\x1b[2J\x07\x9b31m\u202e\u2066\u200b\ufeff\u2028\x7fb"
KEY = "hf_a1B2c3D4e5F6g7H8i9J0"


def is_clean(text):
    return not [
        one for one in text if unicodedata.category(one) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and one not in "\n\t"
    ]


@pytest.mark.parametrize(
    "text",
    [
        f'student: {{model: "{HOSTILE.encode("unicode_escape").decode()}", "x{HOSTILE[-6:-1]}": 1}}',
        f'student: {{model: "./{HOSTILE.encode("unicode_escape").decode()}.gguf"}}',
        'loss: {"k\\x1b[31m\\nfix: rm -rf ~": {}}',
        'loss: {cross_entropy: {"\\x1b[31m": 1}}',
        '"\\x1b]0;title\\x07": 1',
        "\x1b[31m: 1",
        'extends: "\\x1b[31m\\u202e"',
    ],
)
def test_errors_are_escaped(neoplug, tmp_path, text):
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    answer = neoplug("plan", tmp_path / "r.yaml")
    assert answer.code == 2
    assert is_clean(answer.err)
    assert not [line for line in answer.err.splitlines() if line.startswith("fix: rm")]
    assert is_clean(neoplug("--traceback", "plan", tmp_path / "r.yaml").err)


@pytest.mark.parametrize(
    "command",
    [
        ["plan", HOSTILE],
        ["run", "base", f"seed={HOSTILE}"],
        ["export", HOSTILE, HOSTILE],
        [HOSTILE],
        ["plan", "base", f"--{HOSTILE}"],
        ["plan", "base", f"--{KEY}"],
        ["plan", "base", f"-{HOSTILE[-1]}\u202e"],
        ["preview", "base", "--rows", HOSTILE],
    ],
)
def test_arguments_are_escaped(neoplug, command):
    answer = neoplug(*command)
    assert answer.code != 0
    assert answer.err
    assert is_clean(answer.out + answer.err)
    assert KEY not in answer.err


def test_plan_and_preview_are_escaped_and_json_stays_json(neoplug, recipe, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"messages": [{"role": "user", "content": f"{n} {HOSTILE}"}, {"role": "assistant", "content": HOSTILE}]}
        for n in range(20)
    ]
    (folder / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ["data.source=null", f"data.sources={json.dumps({HOSTILE: {'source': str(folder / 'h.jsonl')}})}"]
    plan = neoplug("plan", recipe, *overrides)
    assert plan.code == 0, plan.err
    assert is_clean(plan.out + plan.err)
    assert r"\u202e" in plan.out
    preview = neoplug("preview", recipe, *overrides)
    assert preview.code == 0, preview.err
    assert is_clean(preview.out + preview.err)
    as_json = neoplug("plan", recipe, *overrides, "--json").out
    assert [*json.loads(as_json)["recipe"]["data"]["sources"]] == [HOSTILE]


def test_json_is_ascii(capsys):
    echo_json({HOSTILE: HOSTILE})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {HOSTILE: HOSTILE}
    assert is_clean(printed)


def test_logs_and_warnings_are_escaped_and_without_credentials(capsys):
    with watch.log_to_stderr():
        logging.getLogger("neoplug.test").warning("%s of https://user:pass@host, %s", HOSTILE, KEY)
    printed = capsys.readouterr().err
    assert is_clean(printed)
    assert "pass" not in printed
    assert KEY not in printed
    text = format_warning(f"{HOSTILE} {KEY}", UserWarning, "file.py", 1)
    assert is_clean(text)
    assert KEY not in text
    assert warnings.formatwarning("plain", UserWarning, "file.py", 1, "x") == format_warning(
        "plain", UserWarning, "file.py", 1, "x"
    )


def test_logs_of_libraries_are_escaped_and_without_credentials(neoplug):
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    logger = logging.getLogger("a.library")
    logger.addHandler(handler)
    try:
        neoplug("recipes")
        logger.error("%s of %s", HOSTILE, KEY)
        try:
            raise ValueError(HOSTILE + KEY)
        except ValueError:
            logger.exception("failed")
    finally:
        logger.removeHandler(handler)
        logging.setLogRecordFactory(logging.LogRecord)
    assert written.getvalue().count(r"\u202e") == 2
    assert "Traceback" in written.getvalue()
    assert is_clean(written.getvalue())
    assert KEY not in written.getvalue()


def test_the_bar_shows_escaped_names(monkeypatch):
    screen = io.StringIO()
    bar = watch.Bar(Console(file=screen, width=200))  # no terminal: rich adds no control codes
    with bar.display:
        bar.phase(HOSTILE)
        bar.started(4, 1)
        bar.step({"step": 2, "loss": 1.0, "losses": {HOSTILE: 2.0}})
        bar.phase(HOSTILE)
    assert is_clean(screen.getvalue())
    assert r"\u202e" in screen.getvalue()
    assert sys.stdout is not screen


@pytest.mark.parametrize(
    "value",
    ["plain", "```\n# heading", "`` ` ``", "a\n\n  ```\n<script>\n", "~~~\n```````\n", "` x", "x `", HOSTILE, "a\nb"],
)
def test_code_in_a_card_ends_where_it_should(value):
    """markdown-it finds one block, or one span, that holds all of the code."""
    block, paragraph, *_ = [
        token for token in MarkdownIt().parse(f"{fenced(value + chr(10), 'yaml')}\nafter\n") if token.type != "text"
    ]
    assert (block.type, block.info, paragraph.type) == ("fence", "yaml", "paragraph_open")
    assert value not in (HOSTILE,) or is_clean(block.content)
    assert value in (HOSTILE,) or block.content == value + "\n"
    (inline,) = [token for token in MarkdownIt().parse(f"model: {code(value)}, done") if token.type == "inline"]
    kinds = [child.type for child in inline.children]
    assert kinds == ["text", "code_inline", "text"]
    assert is_clean(inline.children[1].content)
