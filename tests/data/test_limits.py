"""Limits of a row: templates without end are refused, with the row; rows that are too long are dropped."""

import signal
import sys
import threading

import pytest

from neoplug.data.encode import limits, row_encoder
from neoplug.data.encode.chat import ChatTemplate
from neoplug.data.encode.row_encoder import RowEncoder
from neoplug.data.ingest.columns import recognise
from neoplug.errors import RecipeError

# An alarm that falls into a finalizer is lost there, and comes again.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# What each does is done only for the user's turn `endless`, so that the template is valid for other rows.
ENDLESS = {
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for x in [1, 1, 1] recursive %}{{ loop([1, 1, 1]) if loop.depth < 60 }}{% endfor %}",
    "power": "{% set n = 9 ** (9 ** 9) %}",
    "filter": "{% for a in range(99999) %}{% set x = range(99999) | list | sort | join %}{% endfor %}",
}
GROWING = {
    "product": "{{ 'a' * 10 ** 11 }}",
    "constant list": "{% set x = [0] * 10 ** 11 %}",
    "concatenation": "{% set ns = namespace(a='a') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    "replacement": "{% set ns = namespace(a='aa') %}{% for i in range(60) %}"
    "{% set ns.a = ns.a.replace('a', ns.a) %}{% endfor %}",
    "padding": "{{ 'a' | center(10 ** 12) }}",
    "format": "{{ '%1000000000000d' % 1 }}",
    "block": "{% set ns = namespace(a='a') %}{% for i in range(60) %}"
    "{% set x %}{{ ns.a }}{{ ns.a }}{% endset %}{% set ns.a = x %}{% endfor %}",
}
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(autouse=True)
def low(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    monkeypatch.setattr(limits, "MEMORY", 2**28)


def encode(tokenizer, template, *questions):
    """Return the dropped rows (number -> reason) of conversations with these questions."""
    row = recognise(["messages"], {}).content
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": "b"}] for q in questions]
    dropped = {}
    list(
        RowEncoder(tokenizer, template, "answers").encode(
            [row({"messages": t}, n) for n, t in enumerate(turns)], dropped.__setitem__
        )
    )
    return dropped


@pytest.mark.parametrize("body", [*ENDLESS.values(), *GROWING.values()], ids=[*ENDLESS, *GROWING])
def test_a_template_without_end_is_refused_with_the_row(tiny_tokenizer, body):
    template = PLAIN + "{% if messages[0].content == 'endless' %}" + body + "{% endif %}"
    with pytest.raises(RecipeError) as refused:
        encode(tiny_tokenizer, template, "a", "endless", "c")
    (problem,) = refused.value.problems
    assert problem.what.startswith("row 1: the chat template takes ")
    assert problem.path == ("data", "chat_template")


def test_one_that_never_ends_is_refused_before_any_row(tiny_tokenizer):
    with pytest.raises(RecipeError, match="the chat template takes longer than 0 seconds for one conversation"):
        ChatTemplate(tiny_tokenizer, ENDLESS["loop"])


@pytest.mark.parametrize(
    "body",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{{ messages.append(messages[0]) }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    ],
)
def test_a_template_reaches_no_python_object(tiny_tokenizer, body):
    template = PLAIN + "{% if messages[0].content == 'hostile' %}" + body + "{% endif %}"
    dropped = encode(tiny_tokenizer, template, "a", "hostile", "b")
    assert dropped.keys() == {1}
    assert "unsafe" in dropped[1] or "SecurityError" in dropped[1], dropped


def test_alarms_and_limits_are_as_before(tiny_tokenizer):
    resource = pytest.importorskip("resource")
    calls = []
    before = signal.signal(signal.SIGVTALRM, lambda *_: calls.append(1)), resource.getrlimit(resource.RLIMIT_AS)
    try:
        own = signal.getsignal(signal.SIGVTALRM)
        signal.setitimer(signal.ITIMER_VIRTUAL, 1000)
        assert encode(tiny_tokenizer, PLAIN, "a") == {}
        assert signal.getsignal(signal.SIGVTALRM) is own
        assert 900 < signal.setitimer(signal.ITIMER_VIRTUAL, 0)[0] < 1001  # a virtual timer counts in ticks
        assert resource.getrlimit(resource.RLIMIT_AS) == before[1]
    finally:
        signal.signal(signal.SIGVTALRM, before[0])


def test_another_thread_renders_as_well(tiny_tokenizer):
    found = []
    thread = threading.Thread(target=lambda: found.append(encode(tiny_tokenizer, PLAIN, "a")))
    thread.start()
    thread.join()
    assert found == [{}]


def test_rows_that_are_too_long_are_dropped(tiny_tokenizer, monkeypatch):
    for module in (limits, row_encoder, sys.modules["neoplug.data.encode.conversations"]):
        monkeypatch.setattr(module, "LONGEST", 100)
    assert encode(tiny_tokenizer, PLAIN, "a", "b" * 101, "c") == {1: limits.TOO_LONG}
    grown = PLAIN.replace("m.content", "m.content * (200 if messages[0].content == 'b' else 1)")
    assert encode(tiny_tokenizer, grown, "a", "b") == {1: f"the chat template writes {limits.TOO_LONG}"}


@pytest.mark.parametrize("longest", [1, 7, 40, 10_000])
def test_how_many_rows_are_tokenised_at_once_changes_nothing(tiny_tokenizer, monkeypatch, longest):
    texts = ["a few words " * n for n in range(1, 9)]
    content = recognise(["text"], {}).content
    rows = [content({"text": text}, number) for number, text in enumerate(texts)]
    expected = [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    monkeypatch.setattr(row_encoder, "LONGEST", longest + max(map(len, texts)))
    found = list(RowEncoder(tiny_tokenizer, None, "answers").encode(rows, pytest.fail))
    assert [row.row for row in found] == [*range(8)]
    assert [row.input_ids.tolist()[: len(ids)] for row, ids in zip(found, expected, strict=True)] == expected
