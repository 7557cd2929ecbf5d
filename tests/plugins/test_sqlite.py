"""Rows of a SQLite database: against sqlite3's own and against the same rows in jsonl; what is refused, and where."""

import hashlib
import json
import sqlite3
from contextlib import closing

import pytest

from neoplug.data import load_corpus
from neoplug.errors import RecipeError
from neoplug.recipe.schema import Data
from neoplug.registry import Plugins
from neoplug_sources.sqlite import SQLite

TEXTS = [f"Text number {number} is about {'cheese ' * (number % 5)}and wine." for number in range(16)]
CHATS = [
    [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"It is {number}, I think."}]
    for number in range(12)
]


def database(file, statements=()):
    """Write a database with tables of texts, chats and pairs, and run further statements."""
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("CREATE TABLE texts (id INTEGER PRIMARY KEY, body TEXT)")
        opened.executemany("INSERT INTO texts (body) VALUES (?)", [(text,) for text in TEXTS])
        opened.execute("CREATE TABLE chats (messages TEXT)")
        opened.executemany("INSERT INTO chats VALUES (?)", [(json.dumps(chat),) for chat in CHATS])
        for statement in statements:
            opened.execute(statement)
        opened.commit()
    return file


def corpus_of(tokenizer, source, **settings):
    """Return the data of one source: a path, or the options of the plugin."""
    plugins = None
    if isinstance(source, dict):
        plugins = Plugins({"data.source": {"sqlite": SQLite(**source)}})
        source = {"sqlite": {name: str(value) for name, value in source.items()}}
    data = Data(source=source, max_length=64, held_out=3, **settings)
    return load_corpus(data, tokenizer, plugins=plugins)


def test_rows_are_those_of_sqlite3(tmp_path):
    values = ["CREATE TABLE v (a, b, c, d, e)", "INSERT INTO v VALUES (1, 2.5, NULL, 'ü', x'00ff')"]
    file = database(tmp_path / "a b?#%.db", [*values, "INSERT INTO v VALUES (9e99, -3, '', '007', 'x')"])
    for query in (
        "SELECT * FROM v",
        "SELECT e AS text, a + b FROM v ORDER BY b",
        "SELECT value FROM json_each('[1, 2]')",
    ):
        with closing(sqlite3.connect(file)) as opened:
            opened.row_factory = sqlite3.Row
            expected = [dict(row) for row in opened.execute(query)]
        assert list(SQLite(file, query).rows()) == expected


def test_what_is_no_utf8_is_bytes(tmp_path):
    file = database(tmp_path / "a.db", ["INSERT INTO texts (body) VALUES (CAST(x'ff41' AS TEXT))"])
    (row,) = SQLite(file, "SELECT body FROM texts WHERE id = 17").rows()
    assert row == {"body": b"\xffA"}


@pytest.mark.parametrize(
    ("query", "columns", "rows"),
    [
        ("SELECT id, body AS text FROM texts ORDER BY id", {}, [{"text": text} for text in TEXTS]),
        ("SELECT body FROM texts ORDER BY id DESC", {"text": "body"}, [{"body": text} for text in TEXTS[::-1]]),
        ("SELECT messages FROM chats", {}, [{"messages": chat} for chat in CHATS]),
        (
            "SELECT 'Say ' || id AS prompt, body AS completion FROM texts",
            {},
            [{"prompt": f"Say {number}", "completion": text} for number, text in enumerate(TEXTS, 1)],
        ),
    ],
)
def test_the_documents_are_those_of_the_same_rows_in_jsonl(tmp_path, tiny_tokenizer, query, columns, rows):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = database(tmp_path / "rows.db")
    mine = corpus_of(tiny_tokenizer, {"path": file, "query": query}, columns=columns)
    theirs = corpus_of(tiny_tokenizer, str(tmp_path / "rows.jsonl"), columns=columns)
    assert mine.fingerprint == theirs.fingerprint
    assert mine.report.read[""].rows == len(rows)
    assert mine.report.train == theirs.report.train
    hashes = [[document.content_hash for document in corpus.held_out] for corpus in (mine, theirs)]
    assert hashes[0] == hashes[1]


def test_tokens_are_stored_by_the_content_of_the_file_and_the_query(tmp_path, tiny_tokenizer, monkeypatch):
    monkeypatch.setenv("NEOPLUG_HOME", str(tmp_path / "home"))
    query = "SELECT body AS text FROM texts"
    file, moved = database(tmp_path / "a.db"), tmp_path / "moved.db"

    def stores(file, query):
        corpus_of(tiny_tokenizer, {"path": file, "query": query})
        return len([entry for entry in (tmp_path / "home" / "tokens").iterdir() if entry.is_dir()])

    assert stores(file, query) == 1
    moved.write_bytes(file.read_bytes())
    assert stores(moved, query) == 1
    assert stores(file, f"{query} WHERE id > 1") == 2
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("UPDATE texts SET body = 'other' WHERE id = 4")
        opened.commit()
    assert stores(file, query) == 3


def test_changes_that_are_in_the_log_alone_are_part_of_the_identity(tmp_path):
    file = database(tmp_path / "a.db")
    source = SQLite(file, "SELECT count(*) AS text FROM chats")
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("PRAGMA journal_mode = WAL")
        before, content = source.identity(), file.read_bytes()
        opened.execute("DELETE FROM chats")
        opened.commit()
        assert file.read_bytes() == content
        assert list(source.rows()) == [{"text": 0}]
        assert source.identity()[:2] == before
        assert len(source.identity()) == 3


RECIPE = """student: {{model: {model}}}
data:
  source: {{sqlite: {{path: {path}, query: "{query}"}}}}
adapter: {{lora: {{}}}}
loss: {{cross_entropy: {{}}}}
"""


@pytest.fixture
def refused(tmp_path, tiny_student):
    """Return a function: path and query -> the message of the recipe with these, and its line with the mark."""
    from neoplug import recipe
    from neoplug.runs.inputs import find_models

    database(tmp_path / "chats.db")
    (tmp_path / "prose.db").write_text("This is no database. " * 99)
    (tmp_path / "folder.db").mkdir()

    def validate(file):
        checked = recipe.load(file)
        with checked.marking():
            find_models(checked)

    def refused(path, query):
        file = tmp_path / "recipe.yaml"
        file.write_text(RECIPE.format(model=tiny_student, path=path, query=query))
        with pytest.raises(RecipeError) as found:
            validate(file)
        (problem,) = found.value.problems
        mark = problem.mark
        assert (mark.file, mark.line) == (str(file), 3)
        return str(problem), mark.text[mark.column - 1 : mark.column - 1 + mark.length]

    return refused


@pytest.mark.parametrize(
    ("path", "query", "words", "marked"),
    [
        ("chat.db", "SELECT 1", ["no file or folder chat.db", "did you mean `chats.db`?"], "chat.db"),
        ("prose.db", "SELECT 1 FROM a", ["SQLite cannot read", "file is not a database"], "prose.db"),
        ("folder.db", "SELECT 1 FROM a", ["SQLite cannot read", "folder.db"], "folder.db"),
        ("chats.db", "SELEC 1", ['near "SELEC": syntax error'], '"SELEC 1"'),
        ("chats.db", "SELECT * FROM text", ["no such table: text; did you mean `texts`?", "chats"], None),
        ("chats.db", "SELECT bdy FROM texts", ["no such column: bdy"], None),
        ("chats.db", "SELECT ?", ["bindings"], None),
        ("chats.db", "SELECT 1; SELECT 2", ["one statement"], None),
        ("chats.db", "SELECT body, body FROM texts", ["several columns named `body`", "rename"], None),
        ("chats.db", "DELETE FROM texts", ["readonly database", "write one SELECT"], None),
        ("chats.db", "UPDATE texts SET body = '' RETURNING body AS text", ["readonly database"], None),
        ("chats.db", "DROP TABLE texts", ["readonly database"], None),
        ("chats.db", "CREATE TEMP TABLE t (a)", ["answers no columns", "write one SELECT"], None),
        ("chats.db", "ATTACH 'new.db' AS new", ["attached"], None),
        ("chats.db", "VACUUM INTO 'new.db'", ["attached"], None),
        ("chats.db", "", ["answers no columns"], '""'),
        ("chats.db", "SELECT body AS text FROM texts WHERE 0", ["sqlite has no rows"], "source"),
        ("chats.db", "SELECT id FROM texts", ["match no kind of row", "the columns found are id"], "source"),
    ],
)
def test_a_mistake_is_refused_at_its_option_and_nothing_is_changed(
    refused, tmp_path, monkeypatch, path, query, words, marked
):
    monkeypatch.chdir(tmp_path)
    before = hashlib.sha256((tmp_path / "chats.db").read_bytes()).digest()
    message, text = refused(path, query)
    assert not [word for word in words if word not in message]
    assert text == (f'"{query}"' if marked is None else marked)
    assert hashlib.sha256((tmp_path / "chats.db").read_bytes()).digest() == before
    assert not (tmp_path / "new.db").exists()
