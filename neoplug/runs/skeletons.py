"""Models on the meta device, with the sizes that they have once they are loaded, adapted and trained."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from neoplug.environment.dtypes import resolve_dtype
from neoplug.models.load import load_meta_model, plugin_kwargs
from neoplug.runs.preflight import is_impossible_on_meta, prepare_skeleton
from neoplug.training.optim import make_optimizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from neoplug.hookspecs import Role
    from neoplug.models.reference import ResolvedModel
    from neoplug.recipe import ResolvedRecipe
    from neoplug.registry import Plugins

logger = logging.getLogger(__name__)

FLOAT32 = 4  # bytes


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A model on the meta device, with the device and dtype that its weights are to be loaded with.

    parameters  number of its parameters
    bytes       size of its weights once loaded, quantised or not
    """

    located: ResolvedModel
    device: str
    dtype: torch.dtype
    skeleton: PreTrainedModel
    parameters: int
    bytes: int

    @property
    def config(self) -> PretrainedConfig:
        """The model's configuration."""
        return self.skeleton.config

    def facts(self) -> dict[str, Any]:
        """Return what a plan says of the model."""
        return {
            "source": self.located.source,
            "revision": self.located.revision,
            "adapter": self.located.adapter.source if self.located.adapter else None,
            "device": self.device,
            "dtype": str(self.dtype).removeprefix("torch."),
            "parameters": self.parameters,
            "bytes": self.bytes,
        }


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters of the student with its adapter, and the bytes of the optimizer's state."""

    trainable: int
    total: int
    optimizer: int

    @property
    def whole(self) -> bool:
        """Whether all weights are trained."""
        return self.trainable == self.total


def load_skeleton(checked: ResolvedRecipe, role: Role, located: ResolvedModel) -> Skeleton:
    """Return a model on the meta device, the student as its plugins prepare it."""
    section = getattr(checked.recipe, role)
    device = section.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype(section.dtype, device)
    skeleton = load_meta_model(located, role, section.attn_implementation)
    if role == "student":
        prepare_skeleton(checked, skeleton)
    parameters = sum(weight.numel() for weight in skeleton.parameters())
    return Skeleton(located, device, dtype, skeleton, parameters, weight_bytes(checked.plugins, role, skeleton, dtype))


def weight_bytes(plugins: Plugins, role: Role, skeleton: PreTrainedModel, dtype: torch.dtype) -> int:
    """Return the bytes of the weights; for a `load` plugin that quantises, transformers' quantiser computes them."""
    kwargs = plugin_kwargs(plugins, role)
    if "quantization_config" not in kwargs:
        return int(sum(weight.numel() for weight in skeleton.parameters()) * dtype.itemsize)
    return _quantised_bytes(deepcopy(skeleton), kwargs["quantization_config"], dtype)


def _quantised_bytes(skeleton: PreTrainedModel, config: Any, dtype: torch.dtype) -> int:
    from transformers.quantizers import AutoHfQuantizer

    quantiser = AutoHfQuantizer.from_config(config)
    skeleton = skeleton.to(dtype)
    quantiser.preprocess_model(skeleton, dtype=dtype, device_map=None)
    return int(
        sum(
            weight.numel() * quantiser.param_element_size(skeleton, name, weight)
            for name, weight in skeleton.named_parameters()
        )
    )


def trained_sizes(checked: ResolvedRecipe, model: torch.nn.Module) -> Sizes:
    """Return the sizes of a student with its adapter, on the meta device."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    return Sizes(
        trainable=sum(weight.numel() for weight in trainable),
        total=sum(weight.numel() for weight in model.parameters()),
        optimizer=_optimizer_bytes(checked, model, trainable),
    )


def _optimizer_bytes(checked: ResolvedRecipe, model: torch.nn.Module, trainable: list[torch.nn.Parameter]) -> int:
    """Return the bytes of the optimizer's state after a step on the meta device; if it cannot step, those of Adam's."""
    for weight in trainable:
        weight.grad = torch.empty_like(weight)
    try:
        optimizer = make_optimizer(model, checked.plugins, checked.recipe.train.learning_rate)
        optimizer.step()
        states = {id(value): value for state in optimizer.state.values() for value in state.values()}  # some are shared
        return sum(value.numel() * value.element_size() for value in states.values() if isinstance(value, torch.Tensor))
    except Exception as error:
        if not is_impossible_on_meta(error):
            raise
        (name,) = checked.plugins.implements("make_optimizer")
        logger.warning("`%s` cannot step on the meta device (%s): its state is estimated as Adam's", name, error)
        return 2 * FLOAT32 * sum(weight.numel() for weight in trainable)
