"""The teacher's distributions from its hidden states, a block of tokens at a time. n tokens, V vocabulary."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BLOCK = 64  # tokens whose logits exist at a time


def blocks(states: Tensor, logits: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Yield log-probabilities [n, V] float32 on the CPU, for at most BLOCK tokens each."""
    for part in states.split(BLOCK):
        yield torch.log_softmax(logits(part).float(), -1).cpu()


def entropy(log_p: Tensor) -> Tensor:
    """Return the entropy [n] in nats of log-probabilities [n, V]."""
    return torch.special.entr(log_p.exp()).sum(-1)
