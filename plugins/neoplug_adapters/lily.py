"""Lily: layers share low-rank matrices; a router mixes the shared ones for each token.

    W + scaling B_x A_l,  A_l of a few neighbouring layers, B_x a mix of num_B matrices by a router of x

Source: Zhong et al. 2024, arXiv 2407.09946.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neoplug import AdapterTraits, UsageError, hookimpl
from neoplug_adapters.tuner import Tuner

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(eq=False)
class Lily(Tuner):
    """Peft's Lily."""

    name: ClassVar[str] = "lily"
    config: ClassVar[str] = "LilyConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        cannot_merge="the change depends on the token, so that no weight holds it",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "stride_A", "num_B", "scaling")

    r: int = 32  # the rank, above 0
    stride_A: int = 1  # neighbouring layers that share an A
    num_B: int = 2  # matrices B that are mixed, 2 or more
    scaling: float = 1.0  # of the change

    @hookimpl
    def merge_adapter(self, model: PreTrainedModel) -> PreTrainedModel:
        """Refuse it."""
        why = self.traits.cannot_merge
        raise UsageError(f"a `{self.name}` adapter cannot be merged\nwhy: {why}\nfix: use it with peft")
