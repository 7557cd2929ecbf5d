"""Named random streams: each is a function of (seed, names), so that draws of one do not change another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator


def derive(seed: int, *names: object) -> int:
    """Return a seed of 63 bits for the stream `names` of a run with `seed`.

    Of a path in a name only the last part is used, so that a plugin in a file has the same stream in any folder.
    """
    text = "/".join(str(name).rpartition("/")[2] for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object) -> Generator:
    """Return a torch generator on the CPU for the stream `names`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))


@contextmanager
def generators_restored() -> Iterator[None]:
    """Restore the global random generators on exit: Python's, numpy's, torch's on CPU and CUDA devices in use."""
    import random

    import numpy as np
    import torch

    python, arrays, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(cpu)
        if devices:
            torch.cuda.set_rng_state_all(devices)
