"""Text of tokenised documents for display, in pieces that are marked as answer or prompt."""

from collections.abc import Iterator

from neoplug.data.batch import Document
from neoplug.data.encode.text_encoder import Tokenizer

Piece = tuple[str, bool]  # text, and whether it is answer tokens

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a decoder returns for an incomplete character


def pieces(document: Document, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield the text of each token and its loss mask; the tokens of one character are one piece, with the last's mask.

    A token is decoded together with the piece before it, since some decoders remove the space before the first token.
    """
    before: list[int] = []
    text_before = ""
    pending: list[int] = []
    for index, (token, in_loss) in enumerate(
        zip(document.input_ids.tolist(), document.loss_mask.tolist(), strict=True)
    ):
        pending.append(token)
        text = tokenizer.decode([*before, *pending], clean_up_tokenization_spaces=False)
        if text.endswith(INCOMPLETE) and index + 1 < len(document):
            continue
        yield text[len(text_before) :], in_loss
        before, pending = pending, []
        text_before = tokenizer.decode(before, clean_up_tokenization_spaces=False)
