"""NF4: base weights in 4 bits, dequantised as they are used (QLoRA, arXiv 2305.14314). bitsandbytes, on CPU and CUDA.

Embeddings and head stay as they are. The quantised weights never train: an adapter does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from neoplug.hookspecs import hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(eq=False)
class NF4:
    """Load linear layers in 4 bits.

    use_double_quant  quantise the quantisation constants too: 0.4 bits a weight less
    compute_dtype     of the matmuls; by default bfloat16 where the device computes it natively, else float32
    """

    use_double_quant: bool = True
    compute_dtype: Literal["float32", "bfloat16"] | None = None

    @hookimpl
    def load_kwargs(self) -> dict[str, Any]:
        """Quantise on the way in."""
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=self.use_double_quant,
            bnb_4bit_compute_dtype=self.compute_dtype or "float32",
        )
        return {"quantization_config": config}

    @hookimpl
    def after_load(self, model: PreTrainedModel) -> None:
        """Set what each layer computes in, and switch off the repacking that loses gradients on some CPUs."""
        from bitsandbytes.nn import Linear4bit

        from neoplug.models import dtype_named

        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.compute_dtype = dtype_named(self.compute_dtype, module.weight.device)
                module.compute_type_is_set = True
                # After an evaluation forward on a CPU with AVX512-BF16 the layer packs its weight for a matmul that has
                # no input gradient: whatever trains below it gets zeros, in silence (bitsandbytes 0.50).
                module.support_avx512bf16_for_cpu = False
