"""The ledger: appended by many processes, read while it grows, never with half a line."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neoplug.errors import DamageError
from neoplug.studies.ledger import Ledger, Row

FACTS = {
    "arm": {"loss": "ce"}, "kind": "test", "seed": 3, "trial": {"train.learning_rate": 1e-3}, "status": "completed",
    "version": "0", "finished": "2026-01-01T00:00:00+00:00",
}  # fmt: skip
APPENDER = """
import sys
from pathlib import Path
from neoplug.studies.ledger import Ledger, Row
ledger = Ledger(Path(sys.argv[1]))
for number in range(100):
    ledger.append(Row(id=f"{sys.argv[2]}-{number}", values={"cross_entropy": number / 3}, **%r))
"""


def row(name, **more):
    return Row(**{**FACTS, "id": name, **more})


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_row_is_a_line_of_json_and_is_read_back(tmp_path):
    ledger, other = Ledger(tmp_path / "ledger.jsonl"), Ledger(tmp_path / "ledger.jsonl")
    first = row("a", values={"cross_entropy": 0.1 + 0.2}, reason="two\nlines", references={"teacher": {"entropy": 1}})
    ledger.append(first)
    assert [line["id"] for line in lines(ledger.file)] == ["a"]
    assert lines(ledger.file)[0]["values"] == {"cross_entropy": 0.30000000000000004}
    assert other.refresh() == [first]
    ledger.append(row("b"))
    assert other.refresh() == [row("b")]
    assert other.refresh() == []
    assert other.rows == ledger.rows == {"a": first, "b": row("b")}


def test_a_job_has_one_line(tmp_path):
    ledger, other = Ledger(tmp_path / "ledger.jsonl"), Ledger(tmp_path / "ledger.jsonl")
    ledger.append(row("a"))
    other.append(row("a", status="failed"))
    assert [line["status"] for line in lines(ledger.file)] == ["completed"]
    assert other.rows["a"].status == "completed"


def test_an_absent_ledger_is_empty(tmp_path):
    assert Ledger(tmp_path / "ledger.jsonl").refresh() == []


@given(cut=st.integers(min_value=1), rest=st.sampled_from([b"", b"\0\0\0", b'{"id": "torn'])
)  # fmt: skip
def test_a_torn_last_line_is_ignored_and_replaced(tmp_path_factory, cut, rest):
    file = tmp_path_factory.mktemp("study") / "ledger.jsonl"
    writer = Ledger(file)
    writer.append(row("a"))
    whole = file.read_bytes()
    writer.append(row("b"))
    torn = file.read_bytes()[: len(whole) + cut % (len(file.read_bytes()) - len(whole))]
    file.write_bytes(torn + rest)
    ledger = Ledger(file)
    ledger.refresh()
    assert list(ledger.rows) == ["a"]
    ledger.append(row("c"))
    assert [line["id"] for line in lines(file)] == ["a", "c"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("no json", "line 2"),
        ("[]", "line 2"),
        ('{"id": "b"}', "line 2 that neoplug did not write: `arm`"),
        (json.dumps({**FACTS, "id": "b", "status": "fine"}), "`status`"),
        (json.dumps({**FACTS, "id": "b", "seed": "many"}), "`seed`"),
    ],
)
def test_another_damaged_line_is_refused_with_its_number(tmp_path, line, what):
    file = tmp_path / "ledger.jsonl"
    Ledger(file).append(row("a"))
    file.write_text(file.read_text() + line + "\n", encoding="utf-8")
    with pytest.raises(DamageError, match=r"(?s)ledger\.jsonl.*fix: ") as caught:
        Ledger(file).refresh()
    assert what in str(caught.value)


def test_processes_append_at_the_same_time(tmp_path):
    file = tmp_path / "ledger.jsonl"
    command = [sys.executable, "-c", APPENDER % FACTS, str(file)]
    processes = [subprocess.Popen([*command, name]) for name in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert sorted(line["id"] for line in lines(file)) == sorted(f"{name}-{n}" for name in "abc" for n in range(100))
