"""Rows as they are trained, for people: each piece of text, and whether it is scored."""

from collections.abc import Iterator

from neoplug.data.batch import Document
from neoplug.data.encode.tokens import Tokenizer

Piece = tuple[str, bool]  # text, and whether it is scored

BROKEN = "\N{REPLACEMENT CHARACTER}"  # how a decoder shows half of a character


def pieces(document: Document, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield the text of each token with its flag; tokens that are parts of one character come as one piece.

    A token is decoded after the piece before it, since some decoders drop the blank before a token that stands first.
    """
    before: list[int] = []
    known = ""
    pending: list[int] = []
    for number, (token, scored) in enumerate(
        zip(document.input_ids.tolist(), document.loss_mask.tolist(), strict=True)
    ):
        pending.append(token)
        text = tokenizer.decode([*before, *pending], clean_up_tokenization_spaces=False)
        if text.endswith(BROKEN) and number + 1 < len(document):
            continue
        yield text[len(known) :], scored
        before, pending = pending, []
        known = tokenizer.decode(before, clean_up_tokenization_spaces=False)
