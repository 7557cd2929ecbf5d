"""Random streams by name: each is a function of (seed, names), so nobody's draws shift anybody else's."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator


def derive(seed: int, *names: object) -> int:
    """Return a seed of 63 bits for the stream called `names` of a run with `seed`.

    A plugin in a file, `./parts/noise.py:Noise`, counts as `noise.py:Noise`: the same from wherever the recipe is run.
    """
    text = "/".join(str(name).rpartition("/")[2] for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object) -> Generator:
    """Return a torch generator on the CPU for the stream called `names`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
