"""FP4: base weights in 4 bits, whose 16 values are floating-point numbers of 1 sign, 2 exponent and 1 mantissa bits.

Source: Dettmers and Zettlemoyer 2022, arXiv 2212.09720.
"""

from dataclasses import dataclass

from neoplug_models.quantised import FourBits


@dataclass(eq=False)
class FP4(FourBits):
    """Load linear layers in 4-bit floating point; `nf4` is usually more exact."""

    quant_type = "fp4"
