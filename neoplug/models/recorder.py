"""Recording of the hidden states that a model passes to its output head; logits are not computed."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def recording(head: nn.Module, positions: Tensor, length: int) -> Iterator[list[Tensor]]:
    """Replace the forward method of `head` by one that records its input and computes no logits.

    positions  [N] int64, indices into the batch's last `length` columns, flattened to one row
    length     columns of the text; adapters with virtual tokens put further columns before it

    Yields a list that receives the hidden states [N, H] at `positions` in each forward pass.
    """
    recorded: list[Tensor] = []

    def record(hidden: Tensor) -> Tensor:
        recorded.append(hidden[:, -length:].reshape(-1, hidden.shape[-1]).index_select(0, positions))
        return hidden[..., :1].detach()  # in place of the logits: one column

    replaced = vars(head).get("forward")  # accelerate's hooks set `forward` on the instance
    head.forward = record
    try:
        yield recorded
    finally:
        del head.forward
        if replaced is not None:
            head.forward = replaced
