"""Columns are recognised by name or by the recipe's mapping; a row that cannot be used gives a reason."""

import pytest

from neoplug.data.ingest.columns import Content, recognise
from neoplug.errors import RecipeError


@pytest.mark.parametrize(
    ("names", "mapping", "kind"),
    [
        (["id", "messages"], {}, "messages"),
        (["prompt", "messages", "prompt_id"], {}, "messages"),
        (["prompt", "completion"], {}, "completion"),
        (["instruction", "input", "output", "text"], {}, "alpaca"),
        (["text", "label"], {}, "text"),
        (["question", "answer", "text"], {"prompt": "question", "completion": "answer"}, "completion"),
        (["messages", "body"], {"text": "body"}, "text"),
        (["instruction", "response"], {"output": "response"}, "alpaca"),
        (["prompt", "completion"], {"text": "completion"}, "text"),
        (["id", "conversations"], {}, "messages"),
    ],
)
def test_kinds_of_rows(names, mapping, kind):
    assert recognise(names, mapping).main == kind


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"promt": "question"}, ["promt is not a column name of neoplug; did you mean `prompt`?"]),
        ({"text": "contents"}, ["no column `contents`; did you mean `content`?", "content, title"]),
        ({"prompt": "content"}, ["match no kind of row", "content, title", "messages, or prompt + completion"]),
        ({}, ["match no kind of row"]),
        ({"txt": "a", "text": "b"}, ["txt is not a column name", "no column `b`"]),
    ],
)
def test_columns_that_match_no_kind_of_row_are_refused(mapping, said):
    with pytest.raises(RecipeError) as caught:
        recognise(["content", "title"], mapping)
    assert all(part in str(caught.value) for part in said)
    assert all(problem.path[:2] == ("data", "columns") for problem in caught.value.problems)


@pytest.mark.parametrize("mapping", [{"input": "prompt"}, {"messages": "prompt", "text": "prompt"}])
def test_a_mapping_that_matches_no_kind_is_named_without_suggesting_mapped_names(mapping):
    with pytest.raises(RecipeError) as caught:
        recognise(["prompt", "completion"], mapping)
    assert caught.value.problems[0].what == "the columns match no kind of row with " + " and ".join(
        f"`{ours}`" for ours in mapping
    )


def test_a_misspelt_column_of_the_source_gets_a_suggestion():
    with pytest.raises(RecipeError, match=r"`promt`: did you mean `prompt`\?"):
        recognise(["promt", "completion"], {})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": None, "completion": "x"}, "no prompt"),
        ({"prompt": "x"}, "no completion"),
        ({"prompt": "x", "completion": " \n"}, "empty completion"),
        ({"prompt": "x", "completion": 7}, "completion is int, not text"),
    ],
)
def test_reasons_for_texts_that_cannot_be_used(row, reason):
    assert recognise(["prompt", "completion"], {}).content(row, 0) == reason


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "no messages"),
        ([], "no messages"),
        ("hello", "messages is str, not a list"),
        ([{"speaker": "human", "value": "hello"}], "a message without a role"),
        ([{"role": "user", "content": None}], "a message without content"),
        ([{"role": "user", "content": 7}], "a message whose content is not text"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}], "an empty answer"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "a message without content"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "a message whose content is not text"),
    ],
)
def test_reasons_for_messages_that_cannot_be_used(messages, reason):
    assert recognise(["messages"], {}).content({"messages": messages}, 0) == reason


def test_rows_of_equal_content_have_equal_digests_whatever_their_other_columns():
    alpaca = recognise(["id", "instruction", "input", "output"], {})
    first = alpaca.content({"id": 1, "instruction": "a", "input": "", "output": "b"}, 0)
    second = alpaca.content({"id": 2, "instruction": "a", "input": None, "output": "b"}, 1)
    other = alpaca.content({"id": 1, "instruction": "a", "input": "c", "output": "b"}, 2)
    assert isinstance(first, Content)
    assert first.digest == second.digest != other.digest
    chat = recognise(["messages"], {})
    padded = chat.content({"messages": [{"role": "user", "content": "a", "tool_calls": None}]}, 0)
    assert padded.digest == chat.content({"messages": [{"content": "a", "role": "user"}]}, 0).digest


TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": TALK}, "messages"),
        ({"prompt": "a", "completion": "b"}, "completion"),
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"text": "a"}, "text"),
        ({"prompt": "a", "messages": TALK, "text": "a b"}, "messages"),
        ({"messages": None, "prompt": "a", "completion": "b", "text": None}, "completion"),
        ({"messages": None, "prompt": None, "completion": None, "text": "a"}, "text"),
        ({"instruction": "a", "output": None, "text": "a b"}, "no output"),
        ({"prompt": "a", "completion": None, "text": "a b"}, "no completion"),
        ({"messages": None, "prompt": "a"}, "no messages"),
        ({"other": 1}, "no messages"),
    ],
)
def test_the_kind_of_each_row_of_a_mixed_source_follows_from_its_columns(row, kind):
    found = recognise(["messages", "id"], {}).content(row, 0)
    assert (found.kind if isinstance(found, Content) else found) == kind


def test_with_a_mapping_all_rows_are_of_the_mapped_kind():
    columns = recognise(["question", "answer", "messages"], {"prompt": "question", "completion": "answer"})
    assert columns.content({"question": "a", "answer": "b", "messages": TALK}, 0).values == {
        "prompt": "a",
        "completion": "b",
    }
    assert columns.content({"messages": TALK}, 0) == "no prompt"


def test_content_in_text_parts_is_joined():
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    columns = recognise(["messages"], {})
    found = columns.content({"messages": [{"role": "user", "content": parts}, TALK[1]]}, 0)
    plain = columns.content({"messages": [{"role": "user", "content": "a b"}, TALK[1]]}, 1)
    assert found.values == plain.values
    assert found.digest == plain.digest


@pytest.mark.parametrize(
    ("name", "names", "mapping"),
    [
        ("conversations", ["conversations", "id"], {}),
        ("chat", ["chat"], {"messages": "chat"}),
        ("messages", ["conversations", "messages"], {}),
    ],
)
def test_sharegpt_messages_give_the_same_content(name, names, mapping):
    written = [("system", "system", "Be kind."), ("human", "user", "Hi."), ("gpt", "assistant", "Hello.")]
    theirs = [{"from": speaker, "value": text} for speaker, _, text in written]
    ours = [{"role": role, "content": text} for _, role, text in written]
    expected = recognise(["messages"], {}).content({"messages": ours}, 3)
    assert isinstance(expected, Content)
    assert recognise(names, mapping).content({name: theirs}, 3) == expected
    broken = recognise(names, mapping).content({name: [*theirs, {"from": "human"}]}, 3)
    assert broken == "a message without content"
