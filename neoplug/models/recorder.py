"""Recording of the hidden states that enter a model's head, without computing its logits."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def recording(head: nn.Module, positions: Tensor, length: int) -> Iterator[list[Tensor]]:
    """Record the hidden states at `positions` of the last `length` columns that enter `head`, and skip its matmul.

    Yields a list with one tensor [N, H] for each forward pass. Columns are counted from the right, since adapters with
    virtual tokens put columns before the text.
    """
    recorded: list[Tensor] = []

    def record(hidden: Tensor) -> Tensor:
        recorded.append(hidden[:, -length:].reshape(-1, hidden.shape[-1]).index_select(0, positions))
        return hidden[..., :1].detach()

    replaced = vars(head).get("forward")  # hooks of accelerate set an instance attribute
    head.forward = record
    try:
        yield recorded
    finally:
        del head.forward
        if replaced is not None:
            head.forward = replaced
