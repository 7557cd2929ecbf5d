"""Text for people: escapes against Unicode's categories, redaction that keeps places, cuts that keep both ends."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neoplug.errors.text import escaped, has_credential, one_for_one, presentable, redacted, shortened

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def hidden(text, keep=""):
    return [letter for letter in text if unicodedata.category(letter) in HIDDEN and letter not in keep]


@given(st.text() | st.text(alphabet="\x1b\x07\x9b\u202e\u2066\u200b\u2028\ufeff\r\n\tab", max_size=20))
def test_nothing_hidden_is_left(text):
    assert not hidden(escaped(text), keep="\n\t")
    assert not hidden(escaped(text, keep=""))
    assert not hidden(one_for_one(text))
    assert len(one_for_one(text)) == len(text)
    if not hidden(text):
        assert escaped(text) == one_for_one(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\u202eb", r"a\u202eb"),
        ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
        ("a\rb\u2028c", r"a\rb\u2028c"),
        ("tag \U000e0041", r"tag \U000e0041"),
        ("日本語\u3000é\xa0ß", "日本語\u3000é\xa0ß"),
        ("two\nlines\t", "two\nlines\t"),
    ],
)
def test_escapes(text, shown):
    assert escaped(text) == shown


KEY = "a1B2c3D4e5F6g7H8i9J0k1L2"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("https://user:pa55@host/x", "user:pa55"),
        ("https://t0ken@host/x", "t0ken"),
        ("s3://id:key@bucket", "id:key"),
        ("https://host/x?token=abc&y=1", "abc"),
        ("https://host/x?y=1&API_KEY=abc", "abc"),
        ("https://host/x?X-Amz-Signature=abc", "abc"),
        (f"main hf_{KEY}", f"hf_{KEY}"),
        (f"ghp_{KEY}", f"ghp_{KEY}"),
        (f"sk-{KEY}", f"sk-{KEY}"),
        (f"x=sk-{KEY}", f"sk-{KEY}"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ],
)
def test_a_credential_is_masked_letter_by_letter(text, secret):
    assert has_credential(text)
    assert redacted(text) == text.replace(secret, "*" * len(secret))
    assert secret not in presentable(f"before {text}\nafter")


@pytest.mark.parametrize(
    "text",
    ["https://huggingface.co/a/b?x=1", "./file.py:Class@tag", "git@host:path", f"task-{KEY}", "hf_internal_testing/x",
     "user@example.org", "package.module:Class@hot", "tokens=3", "data/*.jsonl", "pypi:a==1/b.gguf#sha256=" + "0" * 64],
)  # fmt: skip
def test_what_is_no_credential_stays(text):
    assert not has_credential(text)
    assert redacted(text) == text


@given(st.text(), st.integers(20, 60))
def test_a_cut_text_keeps_both_ends(text, longest):
    cut = shortened(text, longest)
    assert len(cut) <= longest
    if len(text) > longest:
        head, tail = cut.split(" ... ")[0], cut.split(" ... ")[-1]
        assert text.startswith(head)
        assert text.endswith(tail)
    else:
        assert cut == text
