"""Attempts of torchrun to run the processes: `--max-restarts` starts all of them again where one fails."""

import os
from datetime import timedelta


def attempt() -> int:
    """Return how often torchrun has started these processes before; 0 also without torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def join_attempt(backend: str, timeout: timedelta) -> None:
    """Join the process group of a later attempt, before accelerate would.

    torchrun may keep one store for all attempts, in which the addresses of earlier processes still are: one that reads
    such an address tries to connect to a process that is gone. So each attempt has its own names in the store.
    """
    from torch.distributed import PrefixStore, TCPStore, init_process_group

    rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size, is_master=False, timeout=timeout)
    own = PrefixStore(f"attempt-{attempt()}", store)
    init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout)
