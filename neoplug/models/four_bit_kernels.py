"""A repair of bitsandbytes: on processors with AVX-512 it dequantises 4-bit weights with the scales of other blocks.

Weights are quantised in blocks of 64, which run over the flattened matrix: a block may end in the next row. The kernel
that dequantises them on such a CPU lets each row start a block of its own (`dequantizeBlockwise4bitCpu` in
csrc/cpu_ops.cpp of bitsandbytes 0.50). In a layer whose number of inputs is a multiple of 16 and not of 64, nearly
every weight then has the scale of another block, which doubles or triples the error of its rounding. Products, their
gradients, merges and dequantised copies all come from these kernels, so they are repaired once for a process. The
kernels for CUDA, by their source, count blocks over the flattened matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_longlong
from functools import cache, wraps
from itertools import product
from typing import Any

DTYPES = ("fp32", "bf16", "fp16")  # of the dequantised weights


@cache
def repair_four_bit_kernels() -> None:
    """Have bitsandbytes' CPU kernels use the scale of each weight's own block, whatever the shape of the matrix."""
    from bitsandbytes.backends.utils import CODE
    from bitsandbytes.cextension import lib

    for quant_type, dtype in product(CODE, DTYPES):
        name = f"cdequantize_blockwise_cpu_{quant_type}_{dtype}"
        setattr(lib, name, _block_by_block(getattr(lib, name)))


def _block_by_block(kernel: Callable[..., None]) -> Callable[..., None]:
    """Return the kernel, called with one block as one row where the blocks of a matrix do not end with its rows.

    The weights have the same places in memory either way. A last block that is not full makes all of them one row.
    """

    @wraps(kernel)
    def dequantise(packed: Any, scales: Any, out: Any, blocksize: Any, rows: Any, width: Any) -> None:
        total = rows.value * width.value
        if width.value % blocksize.value:
            width = c_longlong(total if total % blocksize.value else blocksize.value)
            rows = c_longlong(total // width.value)
        kernel(packed, scales, out, blocksize, rows, width)

    return dequantise
