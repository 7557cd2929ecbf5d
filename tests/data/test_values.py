"""Values stay as the format gives them, also nulls; what is stored as JSON text is read once."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from neoplug.data import load_corpus
from neoplug.data.ingest.columns import recognise
from neoplug.data.ingest.sources import open_source

SHOWS_ALL = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"name": "w", "parameters": {"properties": {"x": {"type": "string", "default": None, "enum": ["a", None]}}}}
TOOLS = [{"type": "function", "function": TOOL}]


def called(arguments, number=0):
    """Return a conversation whose answer calls a tool."""
    call = {"type": "function", "function": {"name": "w", "arguments": arguments}}
    return [{"role": "user", "content": f"{number}"}, {"role": "assistant", "content": "", "tool_calls": [call]}]


def trained_texts(section, tokenizer, source, **settings):
    """Return the text of each document that is trained on or held out, sorted."""
    data = section(source, held_out=1, packing=False, chat_template=SHOWS_ALL, max_length=2000, **settings)
    corpus = load_corpus(data, tokenizer)
    documents = [*(row[0] for row in corpus.rows), *corpus.held_out]
    return sorted(tokenizer.decode(document.input_ids) for document in documents)


def by_transformers(tokenizer, rows):
    """Return the text of each row by `apply_chat_template` of transformers."""
    return sorted(
        tokenizer.apply_chat_template(row["messages"], row.get("tools"), chat_template=SHOWS_ALL, tokenize=False)
        for row in rows
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_nulls_in_json_are_rendered_as_transformers_does(tmp_path, section, tiny_tokenizer, suffix):
    rows = [{"messages": called({"unit": None, "x": {"y": [None, {"z": None}]}}, n), "tools": TOOLS} for n in range(3)]
    text = json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"a{suffix}").write_text(text)
    texts = trained_texts(section, tiny_tokenizer, tmp_path / f"a{suffix}")
    assert texts == by_transformers(tiny_tokenizer, rows)
    assert '"unit": null' in texts[0]
    assert '"default": null' in texts[0]


def test_only_the_absent_keys_of_a_parquet_union_are_left_out(tmp_path, section, tiny_tokenizer):
    rows = [{"messages": called({key: [1, 2]}, n)} for n, key in enumerate("abc")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = parquet.read_table(tmp_path / "a.parquet").to_pylist()[0]
    assert read["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": [1, 2], "b": None, "c": None}
    assert trained_texts(section, tiny_tokenizer, tmp_path / "a.parquet") == by_transformers(tiny_tokenizer, rows)


def test_the_json_type_of_datasets_is_decoded_as_the_library_does(tmp_path):
    import datasets

    rows = [{"messages": called({"unit": None, "x": n} if n else {"x": "text"}, n)} for n in range(3)]
    table = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    assert "Json" in str(table.features)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    for source in ("a.parquet", "saved"):
        read = list(open_source(str(tmp_path / source)).rows())
        arguments = [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in read]
        assert arguments == [{"x": "text"}, {"unit": None, "x": 1}, {"unit": None, "x": 2}]


def test_a_stream_of_the_json_type_is_decoded(monkeypatch):
    import datasets

    rows = [{"messages": called({"unit": None, "x": 1})}, {"messages": called({"x": "text"})}]
    table = datasets.Dataset.from_list(rows, on_mixed_types="use_json")

    class Builder:
        def as_streaming_dataset(self, split):
            return table.to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: Builder())
    read = open_source("some/one", streaming=True).rows({"messages"})
    assert [row["messages"][1]["tool_calls"] for row in read] == [row["messages"][1]["tool_calls"] for row in rows]


def test_a_map_of_parquet_is_a_dict_with_its_nulls(tmp_path):
    kind = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("args", pyarrow.map_("string", "string"))]))
    column = pyarrow.array(
        [[{"role": "user", "args": [("a", None), ("b", "x")]}, {"role": "user", "args": None}]], kind
    )
    parquet.write_table(pyarrow.table({"messages": column}), tmp_path / "a.parquet")
    (row,) = open_source(str(tmp_path / "a.parquet")).rows()
    assert row["messages"] == [{"role": "user", "args": {"a": None, "b": "x"}}, {"role": "user"}]


def test_invalid_text_of_the_json_type_is_a_fault_of_its_row(tmp_path):
    column = pyarrow.ExtensionArray.from_storage(pyarrow.json_(), pyarrow.array(['{"a": null}', "{", None]))
    parquet.write_table(pyarrow.table({"tools": column}), tmp_path / "a.parquet")
    rows = list(open_source(str(tmp_path / "a.parquet")).rows())
    assert [rows[0], rows[2]] == [{"tools": {"a": None}}, {"tools": None}]
    assert rows[1].startswith("tools is not JSON")


@pytest.mark.parametrize("arguments", ['{"x": "ä", "n": null}', ' {"x":\n"ä", "n": null} '])
def test_arguments_as_json_text_are_read_once(section, tiny_tokenizer, tmp_path, arguments):
    plain = [{"messages": called({"x": "ä", "n": None}, n)} for n in range(3)]
    rows = [{"messages": called(arguments, n)} for n in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert trained_texts(section, tiny_tokenizer, tmp_path / "a.jsonl") == by_transformers(tiny_tokenizer, plain)


@pytest.mark.parametrize("arguments", ["w(1)", '"{}"', "[1]", "7"])
def test_arguments_that_are_text_and_no_object_are_a_fault(arguments):
    found = recognise(["messages"], {}).content({"messages": called(arguments)}, 0)
    assert found == "a tool call whose arguments are text, but not a JSON object"


def test_tools_messages_and_calls_as_json_text_are_those_of_the_values():
    columns = recognise(["messages", "tools"], {})
    plain = columns.content({"messages": called({"x": 1}), "tools": TOOLS}, 0)
    messages = called(json.dumps({"x": 1}))
    messages[1]["tool_calls"] = json.dumps(messages[1]["tool_calls"])
    schema = [{"type": "function", "function": TOOL | {"parameters": json.dumps(TOOL["parameters"])}}]
    for given in (messages, json.dumps(messages), [json.dumps(message) for message in messages]):
        for tools in (schema, json.dumps(TOOLS), [json.dumps(tool) for tool in TOOLS]):
            assert columns.content({"messages": given, "tools": tools}, 0) == plain


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": "hello"}, "messages is str, not a list"),
        ({"messages": '{"role": "user"}'}, "messages is dict, not a list"),
        ({"messages": called({}), "tools": ["w"]}, "a tool that is text, but not a JSON object"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": "w(1)"}]},
            "tool_calls is not a list of calls",
        ),
    ],
)
def test_text_that_is_not_json_is_a_fault(row, reason):
    assert recognise(["messages", "tools"], {}).content(row, 0) == reason
