"""Compact forms of token ids and probabilities: ids in as few bits as the vocabulary needs, probabilities as codes."""

import numpy as np
import torch
from torch import Tensor


def bits_of(vocabulary: int) -> int:
    """Return how many bits the ids 0 .. vocabulary - 1 need, at least 1."""
    return max(1, (vocabulary - 1).bit_length())


def pack_ids(ids: Tensor, vocabulary: int) -> Tensor:
    """Return ids [M] below `vocabulary` as bytes: uint8 [ceil(M * bits / 8)], the highest bit of each id first."""
    shifts = np.arange(bits_of(vocabulary) - 1, -1, -1)
    bits = (ids.numpy().astype(np.int64)[:, None] >> shifts) & 1
    return torch.from_numpy(np.packbits(bits.astype(np.uint8)))


def unpack_ids(packed: Tensor, count: int, vocabulary: int) -> Tensor:
    """Return the ids [count] int64 that `pack_ids` packed."""
    width = bits_of(vocabulary)
    bits = np.unpackbits(packed.numpy(), count=count * width).reshape(count, width)
    return torch.from_numpy(bits @ (1 << np.arange(width - 1, -1, -1, dtype=np.int64)))


def code_of(p: Tensor, levels: int, offset: Tensor | float = 0.5) -> Tensor:
    """Return the codes, int64, of probabilities of any shape: p = (code / levels)^2.

    The square root makes the steps finer for small probabilities: near p they are 2 sqrt(p) / levels wide.

    offset  0.5 rounds to the nearer step in p; uniform random numbers in [0, 1) round at random, with expectation p
    """
    below = (p.double().clamp(0, 1).sqrt() * levels).floor().clamp(max=levels - 1)
    low, high = (below / levels).square(), ((below + 1) / levels).square()
    return (below + ((p.double() - low) / (high - low) > offset)).long()


def probability_of(code: Tensor, levels: int) -> Tensor:
    """Return the probabilities, float64, of codes."""
    return (code.double() / levels).square()
