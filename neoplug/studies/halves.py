"""The halves of the held-out documents: validation chooses what is searched, test is reported once."""

import hashlib
from collections.abc import Iterable
from typing import Literal, get_args

from neoplug.errors import Problem, RecipeError

Half = Literal["validation", "test"]
_SALT = "neoplug study"  # so that the halves do not depend on how documents were held out, also by a content hash


def half_of(content_hash: str) -> Half:
    """Return the half of a document, by its content alone: the same in every run and study.

    content_hash  the column `document` of evaluation/NAME.parquet
    """
    digest = hashlib.sha256((_SALT + content_hash).encode()).hexdigest()
    return "test" if int(digest[:8], 16) % 2 else "validation"


def validate_halves(content_hashes: Iterable[str]) -> None:
    """Refuse held-out documents of which one half has none. Raises RecipeError."""
    halves = [half_of(one) for one in content_hashes]
    for half in get_args(Half):
        if half not in halves:
            documents = "1 document is" if len(halves) == 1 else f"{len(halves)} documents are"
            what = f"{documents} held out, and none of them is in the half for {half}"
            why = "the content of a document decides its half: one half chooses the rates, the other is reported"
            raise RecipeError([Problem(what, why, "hold out more documents", ("data", "held_out"))])
