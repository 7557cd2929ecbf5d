"""AdaMSS: outputs of a weight that behave alike share a few directions; each such group has its own small change.

    W + B A V,  V the first r right singular vectors of W;  k = num_subspaces subspace_rank
    B [out, k], 0 but for each group's own columns, from 0;  A [k, r], from the group's own singular vectors

Groups are found by k-means on the left singular vectors. B and A V are matrices of LoRA's shape, so a run saves plain
LoRA of rank k: peft's own file holds V, and has no groups: they are computed again, and may differ in another dtype.
Biases stay as they are; peft alone would change them too.
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
    """Peft's AdaMSS, all groups training to the end."""

    name: ClassVar[str] = "adamss"
    config: ClassVar[str] = "AdamssConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="subspace_rank",
        not_on_quantised="peft takes no singular components of integer weights",
        shaped_by_weights="a group has as many rows of B as outputs that behave alike",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "num_subspaces", "subspace_rank")
    drawn: ClassVar[tuple[str, ...]] = ("random_seed",)

    r: int = 100  # singular components that changes are made of; a smaller target has as many as it has
    num_subspaces: int = 5  # groups of outputs
    subspace_rank: int = 1  # directions of each group
    random_seed: int | None = None  # of the randomised decomposition; left out: drawn from the run's

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a quantised student, and a machine without scikit-learn."""
        if find_spec("sklearn") is not None:
            return super().check(recipe)
        path = ("adapter", key_of(self.name, recipe.adapter) or self.name)
        what, why = f"`{self.name}` cannot run here", "it finds its groups with scikit-learn, which is not installed"
        return [*super().check(recipe), Problem(what, why, "pip install 'neoplug[adamss]'", path)]

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        if model.device.type == "meta":
            with _any_groups():
                return super()._adapt(model, config, batches)
        adapted = super()._adapt(model, config, batches)
        for _, layer in _layers(adapted):
            if layer.get_base_layer().bias is not None:
                layer.adamss_newB["default"][:, -1] = 0  # reads the bias
        return adapted

    @hookimpl
    def save_adapter(self, model: PeftModel, path: Path) -> None:
        """Write plain LoRA."""
        from peft import LoraConfig

        changes = {name: _low_rank(layer) for name, layer in _layers(model)}
        r, ours = max(len(down) for _, down in changes.values()), model.peft_config["default"]
        weights = {}
        for name, (up, down) in changes.items():
            missing = r - len(down)
            weights[f"base_model.model.{name}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, missing))
            weights[f"base_model.model.{name}.lora_B.weight"] = torch.nn.functional.pad(up, (0, missing))
        where = {"base_model_name_or_path": ours.base_model_name_or_path, "revision": ours.revision}
        plain = LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=r, target_modules=list(changes), **where)
        write_adapter(plain, weights, path)


def _layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    """Yield each layer with groups, by the base's name for it."""
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
    directions = layer.adamss_newB["default"].float().cpu()[:, : layer.in_features]  # without the bias's
    return up, down @ directions


@contextmanager
def _any_groups() -> Iterator[None]:
    """Let a skeleton have groups of equal size: it has no numbers to find any by."""

    def decomposed(weight: Tensor, r: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        *batch, rows, columns = weight.shape
        r = min(r, rows, columns)
        return weight.new_empty(*batch, r, columns), weight.new_empty(*batch, rows, r)

    def dealt(rows: Tensor, groups: int, _: int) -> tuple[Tensor, int]:
        groups = min(groups, len(rows))
        return torch.arange(len(rows), device="cpu") % groups, groups

    where = "peft.tuners.adamss.layer."
    with patch(where + "slice_pca", decomposed), patch(where + "clustering_Z", dealt):
        yield
