"""Recording of the hidden states that enter a model's head, in place of computing its logits."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def recording(head: nn.Module, positions: Tensor, length: int) -> Iterator[list[Tensor]]:
    """Let `head` keep the hidden states at `positions` of the last `length` columns, and skip its matmul.

    Counted from the right, since prompt methods put columns of their own before the text.
    """
    recorded: list[Tensor] = []

    def record(hidden: Tensor) -> Tensor:
        recorded.append(hidden[:, -length:].reshape(-1, hidden.shape[-1]).index_select(0, positions))
        return hidden[..., :1].detach()

    own = vars(head).get("forward")  # accelerate's hooks put one there
    head.forward = record
    try:
        yield recorded
    finally:
        del head.forward
        if own is not None:
            head.forward = own
