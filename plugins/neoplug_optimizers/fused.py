"""Whether torch's fused optimizers can take a set of parameters."""

from typing import Any

DEVICES = ("cpu", "cuda")  # where this is tested; torch has more


def can_fuse(groups: list[dict[str, Any]]) -> bool:
    """Say whether each parameter is a real floating-point tensor on a device with fused kernels."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    return all(p.is_floating_point() and p.device.type in DEVICES for p in parameters)
