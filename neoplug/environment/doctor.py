"""Report on this machine: versions, hardware, and a short test of each optional feature, as bfloat16."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from neoplug.environment.info import hardware, versions
from neoplug.files import cache_root

if TYPE_CHECKING:
    import torch


def examine() -> dict[str, Any]:
    """Return a report: `versions`, `hardware`, `devices`, `cache` (folder) and `works` (feature -> {ok, note}).

    Errors are not raised; their text is part of the report.
    """
    return {
        "versions": versions(),
        "hardware": _value_or_reason(hardware),
        "devices": _value_or_reason(devices),
        "cache": _value_or_reason(lambda: str(cache_root())),
        "works": {name: _run_trial(trial) for name, trial in TRIALS.items()},
    }


def devices() -> list[str]:
    """Return the devices that torch can compute on here."""
    import torch

    names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def _value_or_reason(function: Callable[[], Any]) -> Any:
    """Return what a function returns, or the text of the error that it raises."""
    try:
        return function()
    except Exception as error:
        return _reason(error)


def _run_trial(trial: Callable[[], str]) -> dict[str, Any]:
    """Run a trial, which returns a note, or raises where the feature does not work."""
    try:
        return {"ok": True, "note": trial()}
    except Exception as error:
        return {"ok": False, "note": _reason(error)}


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, _Failure) else f"{type(error).__name__}: {text}"


class _Failure(Exception):
    """A feature that is missing or gives a wrong result."""


def _device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _bf16() -> str:
    import torch

    from neoplug.environment.dtypes import default_dtype

    torch.manual_seed(0)
    left, right = torch.randn(2, 64, 64, device=_device())
    exact, rounded = left @ right, (left.bfloat16() @ right.bfloat16()).float()
    if not torch.allclose(exact, rounded, atol=0.5):
        raise _Failure(f"a bfloat16 product on {_device()} is off by {(exact - rounded).abs().max():.2g}")
    native = default_dtype(_device()) == torch.bfloat16
    return (
        f"native on {_device()}" if native else f"emulated on {_device()}: correct but slow, so float32 is the default"
    )


def _bitsandbytes() -> str:
    """Compare a 4-bit layer with its dequantised weight, forward and backward, after an evaluation as in a run."""
    import bitsandbytes
    import torch

    torch.manual_seed(0)
    layer = bitsandbytes.nn.LinearNF4(64, 64, bias=False, compute_dtype=torch.float32).to(_device())
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    inputs = torch.randn(8, 64, device=_device(), requires_grad=True)
    with torch.no_grad():
        layer.eval()(inputs)
    outputs = layer.train()(inputs)
    (gradient,) = torch.autograd.grad(outputs.square().sum(), inputs)
    expected = inputs @ weight.T
    if not torch.allclose(outputs, expected, atol=0.05):
        raise _Failure(f"a 4-bit layer on {_device()} is off by {(outputs - expected).abs().max():.2g}")
    if not torch.allclose(gradient, 2 * expected @ weight, atol=0.1):
        raise _Failure(f"a 4-bit layer on {_device()} gives a wrong gradient")
    return f"4-bit forward and backward agree with the dequantised weight on {_device()}"


def _sdpa() -> str:
    import torch

    query, key, value = torch.randn(3, 1, 2, 16, 8, device=_device())
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    scores = (query @ key.mT / 8**0.5).masked_fill(~torch.ones(16, 16, device=_device()).tril().bool(), -torch.inf)
    if not torch.allclose(mixed, scores.softmax(-1) @ value, atol=1e-2):
        raise _Failure(f"attention on {_device()} differs from its definition")
    return f"agrees with its definition on {_device()}"


def _flash_attention() -> str:
    import torch

    if not torch.cuda.is_available():
        raise _Failure("needs a CUDA device; sdpa is used instead")
    if importlib.util.find_spec("flash_attn") is None:
        raise _Failure("the package flash_attn is not installed; sdpa is used instead")
    attention = importlib.import_module("flash_attn").flash_attn_func
    heads = torch.randn(1, 16, 2, 64, device="cuda", dtype=torch.bfloat16)
    if not attention(heads, heads, heads, causal=True).isfinite().all():
        raise _Failure("flash_attn returns values that are not finite")
    return "runs on cuda"


def _compile() -> str:
    import torch

    if not callable(getattr(torch, "compile", None)):
        raise _Failure("this torch has no torch.compile")
    if torch.cuda.is_available():
        if importlib.util.find_spec("triton") is None:
            raise _Failure("triton is not installed, which it needs on CUDA")
        return "present, with triton"
    compiler = (
        shutil.which("cl" if sys.platform == "win32" else "c++") or shutil.which("g++") or shutil.which("clang++")
    )
    if compiler is None:
        raise _Failure("no C++ compiler is installed, which it needs on a CPU")
    return f"present, with {compiler}"


TRIALS: dict[str, Callable[[], str]] = {
    "bf16": _bf16,
    "bitsandbytes": _bitsandbytes,
    "sdpa": _sdpa,
    "flash attention": _flash_attention,
    "torch.compile": _compile,
}
