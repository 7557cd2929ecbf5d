"""Rows that are conversations in several columns: `system`, `history`, and prompt and completion as messages."""

import json

import pytest

from neoplug.data import load_corpus
from neoplug.data.ingest.columns import recognise
from neoplug.errors import RecipeError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [user("a"), assistant("b")]


def content(row, mapping=None):
    return recognise(list(row), mapping or {}).content(row, 0)


def messages(row, mapping=None):
    """Return the messages of a row, without the key that excludes a turn from the loss."""
    found = content(row, mapping)
    assert found.kind == "messages", found
    return [
        {name: value for name, value in message.items() if name != "weight"} for message in found.values["messages"]
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK, "system": "Be brief."},
        {"messages": [SYSTEM, *TALK], "system": "Be brief."},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "Be brief."},
        {"instruction": "a", "input": "", "output": "b", "system": "Be brief."},
        {"instruction": "a", "output": "b", "system_prompt": "Be brief."},
        {"prompt": [user("a")], "completion": [assistant("b")], "system": "Be brief."},
        {"prompt": [SYSTEM, user("a")], "completion": "b"},
        {"prompt": json.dumps([SYSTEM, user("a")]), "completion": json.dumps([assistant("b")])},
    ],
)
def test_system_is_the_first_message(row):
    assert messages(row) == [SYSTEM, *TALK]


EARLIER = [user("q"), assistant("r")]


@pytest.mark.parametrize("history", [[["q", "r"]], EARLIER, json.dumps([["q", "r"]]), json.dumps(EARLIER)])
def test_history_is_earlier_turns(history):
    for row in ({"instruction": "a", "output": "b"}, {"conversations": TALK}, {"conversations": [*EARLIER, *TALK]}):
        assert messages(row | {"history": history}) == [*EARLIER, *TALK]
        assert messages(row | {"history": history, "system": "Be brief."}) == [SYSTEM, *EARLIER, *TALK]


def test_an_input_is_part_of_the_question():
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief."}
    assert messages(row) == [SYSTEM, user("Add.\n\n1 2"), assistant("3")]


@pytest.mark.parametrize("empty", [None, "", " ", [], "[]"])
def test_empty_columns_change_nothing(empty):
    plain = content({"instruction": "a", "output": "b"})
    assert content({"instruction": "a", "output": "b", "history": empty}) == plain
    if not isinstance(empty, list) and empty != "[]":
        assert content({"instruction": "a", "output": "b", "system": empty}) == plain


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [SYSTEM, *TALK], "system": "Be long."}, "a system turn, and another text in `system`"),
        ({"messages": TALK, "system": 7}, "system is int, not text"),
        ({"messages": TALK, "history": "no list"}, "history is not a list of turns"),
        ({"messages": TALK, "history": ["q", "r"]}, "history is neither pairs of question and answer nor messages"),
        ({"messages": TALK, "history": [{"x": 1}]}, "a message without a role"),
        ({"prompt": "a", "completion": [assistant("b")]}, "completion is a list of messages, but prompt is not"),
        ({"prompt": ["a"], "completion": "b"}, "a message without a role"),
    ],
)
def test_reasons_for_parts_that_cannot_be_joined(row, reason):
    assert content(row) == reason


def test_a_recipe_maps_system_and_history():
    row = {"q": "a", "r": "b", "persona": "Be brief.", "before": [["q", "r"]]}
    mapping = {"instruction": "q", "output": "r", "system": "persona", "history": "before"}
    assert messages(row, mapping) == [SYSTEM, *EARLIER, *TALK]


def test_prompt_and_completion_as_messages_are_what_transformers_renders(tmp_path, section, tiny_tokenizer):
    rows = [{"prompt": [SYSTEM, user(f"a{n}")], "completion": [assistant(f"b{n}")]} for n in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load_corpus(section(tmp_path / "a.jsonl", held_out=1, packing=False), tiny_tokenizer)
    documents = [*(row[0] for row in corpus.rows), *corpus.held_out]
    whole = [tiny_tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False) for row in rows]
    assert sorted(tiny_tokenizer.decode(document.input_ids) for document in documents) == sorted(whole)
    scored = [tiny_tokenizer.decode(document.input_ids[document.loss_mask]) for document in documents]
    assert sorted(scored) == [f"b{n}<|im_end|>" for n in range(4)]


@pytest.mark.parametrize("prompt", ["[1, 2]", "[", '[{"a": 1}]', "[]"])
def test_a_prompt_that_is_other_json_is_text(prompt):
    found = content({"prompt": prompt, "completion": "b"})
    assert (found.kind, found.values["prompt"]) == ("completion", prompt)


def test_an_answer_in_a_prompt_is_excluded_from_the_loss():
    found = content({"prompt": [*EARLIER, user("a")], "completion": [assistant("b")]})
    assert [message.get("weight") for message in found.values["messages"]] == [None, 0, None, None]


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        ({"prompt": "a", "completion": "b", "system": "Be brief."}, ("system",)),
        ({"prompt": "a", "completion": "b", "context": "c", "history": [["q", "r"]]}, ("history", "context")),
        ({"messages": TALK, "prompt": "a"}, ()),  # the text is in the conversation
        ({"messages": TALK, "prompt": "another"}, ("prompt",)),
        ({"messages": TALK, "instruction": "", "input": None, "context": []}, ()),
        ({"instruction": "a", "output": "b", "context": "c"}, ("context",)),
    ],
)
def test_columns_with_text_of_the_prompt_that_are_not_used_are_found(row, unused):
    assert content(row).unused == unused


def test_they_are_in_the_report(tmp_path, section, tiny_tokenizer):
    rows = [{"prompt": f"a{n}", "completion": "b", "system": "Be brief." if n else ""} for n in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = load_corpus(section(tmp_path / "a.jsonl", held_out=1), tiny_tokenizer).report
    assert "data: 3 rows with text in `system` that is not used (rows 1, 2, 3)" in report.lines()


def test_a_system_text_needs_a_chat_template(tmp_path, section, trimming_tokenizer):
    rows = [{"instruction": f"a{n}", "output": "b", "system": "Be brief."} for n in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RecipeError, match="has no chat template"):
        load_corpus(section(tmp_path / "a.jsonl", held_out=1), trimming_tokenizer)
