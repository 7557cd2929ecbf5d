"""NF4: base weights in 4 bits, whose 16 values are quantiles of a normal distribution (QLoRA, arXiv 2305.14314)."""

from dataclasses import dataclass

from neoplug_models.quantised import FourBits


@dataclass(eq=False)
class NF4(FourBits):
    """Load linear layers in 4-bit NormalFloat, which is more exact than `fp4` for trained weights."""

    quant_type = "nf4"
