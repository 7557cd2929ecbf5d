"""A model as `load_model` returns it, but without data: for steps that run on shapes (`environment.fake_floats`)."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from neoplug.models import dropout
from neoplug.models.load import after_load, load_config, meta_model, plugin_kwargs
from neoplug.models.quiet import quiet_peft
from neoplug.models.reference import ResolvedModel, StoredAdapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoplug.hookspecs import Role
    from neoplug.registry import Plugins

SCALES = 256  # scales of 4-bit weights that share one scale, where these are quantised too


def model_of_shapes(
    located: ResolvedModel,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    attn_implementation: str | None,
    plugins: Plugins,
    role: Role,
    section: Literal["teacher.load", "student.load"],
    prepare: Callable[[PreTrainedModel], object] | None = None,
) -> PreTrainedModel:
    """Return a frozen model with the shapes, types and device of `load_model`, whose arguments these are.

    prepare  prepares the model in place; a run does this first, and loads what it gives

    Must be called in the mode that leaves data out, since the weights are allocated in full otherwise.

    Raises:
        NotImplementedError: the weights are quantised by another library than bitsandbytes.
    """
    config = load_config(located, (role, "model"))
    dropout.switch_off(config)
    chosen = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model: Any = meta_model(config, device, dtype, trust_remote_code=located.trust_remote_code, **chosen)
    if prepare is not None:
        prepare(model)
    kwargs = plugin_kwargs(plugins, role)
    quantisation = kwargs.get("quantization_config") or getattr(config, "quantization_config", None)
    if quantisation is not None:
        _quantise(model, quantisation, dtype, device)
    after_load(plugins, model, role, section)
    model.eval().requires_grad_(False)
    return model


def _quantise(model: Any, config: Any, dtype: torch.dtype, device: torch.device | str) -> None:
    """Replace linear layers by layers in 4 or 8 bits, as transformers does while it loads a model."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from transformers.quantizers import AutoHfQuantizer

    quantiser = AutoHfQuantizer.from_config(config)
    with _disable_current_modes():  # the new layers are on the meta device, in classes that modes cannot make
        quantiser.preprocess_model(model, dtype=dtype, device_map=None)
    model.config.quantization_config = quantiser.quantization_config
    for layer in model.modules():
        if not isinstance(layer, Linear4bit | Linear8bitLt):
            continue
        fill = _fill_4bit if isinstance(layer, Linear4bit) else _fill_8bit
        fill(layer, dtype, torch.device(device))
        if layer.bias is not None:
            layer.bias = nn.Parameter(torch.empty(layer.bias.shape, dtype=dtype, device=device), requires_grad=False)
    if any(weight.is_meta for weight in model.parameters()):
        raise NotImplementedError("only weights quantised by bitsandbytes can be run on shapes")


def _fill_8bit(layer: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Give an 8-bit layer its weight [out, in] int8 and a scale [out] for each row."""
    shape = layer.weight.shape
    weight = nn.Parameter(torch.empty(shape, dtype=torch.int8, device=device), requires_grad=False)
    weight.CB, weight.SCB = weight.data, torch.empty(shape[0], device=device)  # type: ignore[attr-defined]
    weight.has_fp16_weights = False  # type: ignore[attr-defined]
    layer.weight = weight


def _fill_4bit(layer: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Give a 4-bit layer its packed weight and what its scales are, in the shapes that bitsandbytes gives them."""
    from bitsandbytes.functional import QuantState

    old, kind = layer.weight, layer.weight.quant_type
    blocks = -(-old.numel() // old.blocksize)
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.float32, device=device),
        shape=old.shape,
        code=torch.empty(16, device=device),
        blocksize=old.blocksize,
        quant_type=kind,
        dtype=dtype,
    )
    if old.compress_statistics:
        state.absmax = torch.empty(blocks, dtype=torch.uint8, device=device)
        state.offset = torch.empty((), device=device)
        inner = torch.empty(-(-blocks // SCALES), device=device)
        code = torch.empty(256, device=device)
        state.state2 = QuantState(absmax=inner, code=code, blocksize=SCALES, dtype=torch.float32)
        state.nested = True
    packed = nn.Parameter(torch.empty(-(-old.numel() // 2), 1, dtype=torch.uint8, device=device), requires_grad=False)
    packed.quant_state, packed.quant_type = state, kind  # type: ignore[attr-defined]
    packed.compress_statistics, packed.blocksize = old.compress_statistics, old.blocksize  # type: ignore[attr-defined]
    packed.quant_storage, packed.bnb_quantized = old.quant_storage, True  # type: ignore[attr-defined]
    layer.weight, layer.quant_state = packed, state


def with_adapter_of_shapes(model: Any, stored: StoredAdapter) -> nn.Module:
    """Return the model with an adapter of peft that has the shapes of the stored one, frozen."""
    from peft import get_peft_model

    with quiet_peft():
        adapted: nn.Module = get_peft_model(model, deepcopy(stored.config))
    return adapted.eval().requires_grad_(False)
