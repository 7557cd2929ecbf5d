"""AdaMSS: the outputs of each weight are clustered, and each group has its own low-rank change.

    W + B A V,  V the first r right singular vectors of W;  k = num_subspaces subspace_rank
    B [out, k], zero outside each group's columns, starts at 0;  A [k, r] starts as the groups' own singular vectors

Groups are the clusters of k-means on the left singular vectors. B and A V have the shapes of LoRA's matrices, so a run
saves plain LoRA of rank k. (Peft's own file holds V but not the groups: peft computes them again when it loads the
file, and in another dtype they may differ.) Biases do not change, other than in peft.
Source: Zheng et al. 2025, AdaMSS: Adaptive Multi-Subspace Approach (NeurIPS 2025). Needs scikit-learn: extra `adamss`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor

from neoplug import AdapterTraits, Problem, hookimpl
from neoplug_adapters.companions import key_of
from neoplug_adapters.low_rank import write_adapter
from neoplug_adapters.tuner import Tuner

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from neoplug import Batch, Recipe


@dataclass(eq=False)
class AdaMSS(Tuner):
    """A low-rank change for each group of a weight's similar outputs (peft's AdaMSS); all groups train to the end."""

    name: ClassVar[str] = "adamss"
    config: ClassVar[str] = "AdamssConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="subspace_rank",
        not_on_quantised="peft computes no singular components of integer weights",
        shaped_by_weights="a group has as many rows of B as outputs that behave alike",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "num_subspaces", "subspace_rank")
    drawn: ClassVar[tuple[str, ...]] = ("random_seed",)

    r: int = 100  # singular directions that the changes are restricted to; at most all of a target
    num_subspaces: int = 5  # groups of outputs per target
    subspace_rank: int = 1  # directions of each group
    random_seed: int | None = None  # seed of the randomised decomposition; left out: drawn from the run's seed

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a quantised student, and an environment without scikit-learn."""
        if find_spec("sklearn") is not None:
            return super().check(recipe)
        path = ("adapter", key_of(self.name, recipe.adapter) or self.name)
        what, why = f"`{self.name}` cannot run here", "it computes its groups with scikit-learn, which is not installed"
        return [*super().check(recipe), Problem(what, why, "pip install 'neoplug[adamss]'", path)]

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        if model.device.type == "meta":
            with _equal_groups():
                return super()._adapt(model, config, batches)
        adapted = super()._adapt(model, config, batches)
        for _, layer in _layers(adapted):
            if layer.get_base_layer().bias is not None:
                layer.adamss_newB["default"][:, -1] = 0  # the column that reads the bias
        return adapted

    @hookimpl
    def save_adapter(self, model: PeftModel, path: Path) -> None:
        """Write the adapter as plain LoRA in peft's two files."""
        from peft import LoraConfig

        changes = {name: _low_rank(layer) for name, layer in _layers(model)}
        r, config = max(len(down) for _, down in changes.values()), model.peft_config["default"]
        weights = {}
        for name, (up, down) in changes.items():
            missing = r - len(down)
            weights[f"base_model.model.{name}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, missing))
            weights[f"base_model.model.{name}.lora_B.weight"] = torch.nn.functional.pad(up, (0, missing))
        base = {"base_model_name_or_path": config.base_model_name_or_path, "revision": config.revision}
        plain = LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=r, target_modules=list(changes), **base)
        write_adapter(plain, weights, path)


def _layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    """Yield each adapted layer, with its name in the base."""
    for name, layer in adapted.get_base_model().named_modules():
        if hasattr(layer, "adamss_newB"):
            yield name, layer


@torch.no_grad()
def _low_rank(layer: Any) -> tuple[Tensor, Tensor]:
    """Return B [out, k] and A V [k, in] of a layer, on the CPU."""
    parts = [part.float().cpu() for part in layer.adamss_B["default"]]
    up = torch.zeros(layer.out_features, sum(part.shape[1] for part in parts))
    up[layer.scatter_index["default"].cpu()] = torch.block_diag(*parts)
    down = torch.cat([part.float().cpu() for part in layer.adamss_A["default"]])
    directions = layer.adamss_newB["default"].float().cpu()[:, : layer.in_features]  # without the column of the bias
    return up, down @ directions


@contextmanager
def _equal_groups() -> Iterator[None]:
    """Replace peft's decomposition and clustering by empty tensors and equal groups: meta tensors have no values."""

    def empty_components(weight: Tensor, r: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        *batch, rows, columns = weight.shape
        r = min(r, rows, columns)
        return weight.new_empty(*batch, r, columns), weight.new_empty(*batch, rows, r)

    def equal_groups(rows: Tensor, groups: int, _: int) -> tuple[Tensor, int]:
        groups = min(groups, len(rows))
        return torch.arange(len(rows), device="cpu") % groups, groups

    module = "peft.tuners.adamss.layer."
    with patch(module + "slice_pca", empty_components), patch(module + "clustering_Z", equal_groups):
        yield
