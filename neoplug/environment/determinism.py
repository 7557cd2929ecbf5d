"""Deterministic algorithms: what torch has, for the time of a run."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb

import torch

from neoplug.errors import PluginError, RunError

# What cuBLAS and FlashAttention read; cuBLAS has this workspace on every stream, so that it always sums alike.
VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
TORCH = str(Path(torch.__file__).parent)
REFUSAL = re.compile(r"(\S+) does not have a deterministic implementation")


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Let torch use deterministic algorithms alone, if `asked`; on exit restore its settings and the environment.

    Raises:
        RunError: an operator has no such algorithm.
    """
    if not asked:
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    only, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    added = {name: value for name, value in VARIABLES.items() if name not in os.environ}
    os.environ.update(added)
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except Exception as error:
        if failure := without_algorithm(error):
            raise failure from error
        raise
    finally:
        torch.use_deterministic_algorithms(only, warn_only=warns)
        cudnn.deterministic, cudnn.benchmark = before
        for name in added:
            os.environ.pop(name, None)


def without_algorithm(error: BaseException) -> RunError | None:
    """Return the error for people where torch refused an operator that is not deterministic; None for other errors."""
    cause = error.__cause__ if isinstance(error, PluginError) else error
    refusal = REFUSAL.search(str(cause)) if isinstance(cause, RuntimeError) else None
    if cause is None or refusal is None:
        return None
    called = [frame for frame in extract_tb(cause.__traceback__) if not frame.filename.startswith(TORCH)]
    who, place = f"`{called[-1].line}`", f"{called[-1].filename}:{called[-1].lineno}"
    if isinstance(error, PluginError):
        who = f"the plugin `{error.plugin}` in `{error.hook}`"
    failure = RunError(
        f"{who} calls {refusal[1]}, which has no deterministic algorithm here\nat: {place}\n"
        "why: `train.full_determinism` is true, so torch refuses what may give other values each time\n"
        "fix: leave `train.full_determinism` out, or what calls this operator"
    )
    failure.__cause__ = cause
    return failure
