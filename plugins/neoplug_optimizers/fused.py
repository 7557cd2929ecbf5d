"""Checks whether torch's fused optimizers support a set of parameters."""

from typing import Any

DEVICES = ("cpu", "cuda")  # with fused kernels that are tested here; torch has more


def can_fuse(groups: list[dict[str, Any]]) -> bool:
    """Return whether each parameter is a real floating-point tensor on one of these devices."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    return all(p.is_floating_point() and p.device.type in DEVICES for p in parameters)
