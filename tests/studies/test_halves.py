"""The halves of the held-out documents: by content alone, about equal, never empty."""

import hashlib

import pytest

from neoplug.errors import RecipeError
from neoplug.studies.halves import half_of, validate_halves

DOCUMENTS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(10_000)]


def test_the_half_of_a_document_is_the_parity_of_a_hash_of_its_content():
    for document in DOCUMENTS[:100]:
        digest = hashlib.sha256(b"neoplug study" + document.encode()).digest()
        assert half_of(document) == ("validation" if int.from_bytes(digest[:4], "big") % 2 == 0 else "test")


def test_the_halves_are_about_equal_also_among_the_smallest_hashes():
    """Held-out rows are those with the smallest content hashes: the halves must not depend on that."""
    for documents in (DOCUMENTS, sorted(DOCUMENTS)[:400]):
        share = sum(half_of(document) == "test" for document in documents) / len(documents)
        assert abs(share - 0.5) < 3 * 0.5 / len(documents) ** 0.5  # three standard deviations


def test_an_empty_half_is_refused():
    by_half = {half: [one for one in DOCUMENTS[:50] if half_of(one) == half] for half in ("validation", "test")}
    validate_halves([by_half["test"][0], by_half["validation"][0]])
    for half, other in (("test", "validation"), ("validation", "test")):
        with pytest.raises(RecipeError, match=f"3 documents are held out, and none of them is in the half for {other}"):
            validate_halves(by_half[half][:3])
    with pytest.raises(RecipeError, match="1 document is held out"):
        validate_halves(by_half["test"][:1])
