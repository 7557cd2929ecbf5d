"""BOFT: each weight's inputs are rotated by an orthogonal matrix, a product of sparse ones (butterfly factors).

    s W R,  R = R_1 ... R_k;  R_i permuted blocks (1 - Q) (1 + Q)^-1, Q skew, starts at 0
    s one scale per output, starts at 1

Convention: one factor, peft's default, is OFT with these blocks and a trained scale.
Source: Liu et al. 2024, arXiv 2311.06243.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from neoplug import Batch


@dataclass(eq=False)
class BOFT(Tuner):
    """Rotation of each weight's inputs by sparse orthogonal matrices, with a scale per output (peft's BOFT)."""

    name: ClassVar[str] = "boft"
    config: ClassVar[str] = "BOFTConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="boft_block_size", seedless="Q starts at 0")
    positive: ClassVar[tuple[str, ...]] = ("boft_block_size", "boft_block_num", "boft_n_butterfly_factor")
    shares: ClassVar[tuple[str, ...]] = ("boft_dropout",)
    on_meta: ClassVar[bool] = False  # peft reads the values of its permutations

    boft_block_size: int | None = None  # must divide the inputs of all targets; left out: the largest divisor up to 4
    boft_block_num: int | None = None  # blocks per target, in place of their size; must divide all inputs
    boft_n_butterfly_factor: int = 1  # factors of R; 2 and more need a CUDA GPU and its compiler
    boft_dropout: float = 0.0  # in [0, 1), on blocks

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boft_block_size and self.boft_block_num:
            raise ValueError("boft_block_size and boft_block_num are both given, but one follows from the other")

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        option = "boft_block_num" if self.boft_block_num else "boft_block_size"
        value = self._dividing(option, (inputs for inputs, _ in targets), 4)
        return {"boft_block_size": 0, "boft_block_num": 0} | {option: value}

    def _adapt(self, model: PreTrainedModel, config: PeftConfig, batches: Iterable[Batch] | None) -> torch.nn.Module:
        if self.boft_n_butterfly_factor == 1:
            with _without_extension():
                return super()._adapt(model, config, batches)
        from peft.tuners.boft.layer import get_fbd_cuda

        if not torch.cuda.is_available() or not get_fbd_cuda():
            what = f"boft_n_butterfly_factor is {self.boft_n_butterfly_factor}, but peft can compute only 1 here"
            fix = "1, or a machine with a CUDA GPU, nvcc and ninja, from which peft builds its extension"
            raise self._option_error("boft_n_butterfly_factor", what, fix)
        return super()._adapt(model, config, batches)


@contextmanager
def _without_extension() -> Iterator[None]:
    """Keep peft from building its CUDA extension, for each layer again: one factor does not need it."""
    from peft.tuners.boft import layer

    previous = layer._FBD_CUDA
    layer._FBD_CUDA = False  # None would mean "not tried yet"
    try:
        yield
    finally:
        layer._FBD_CUDA = previous
