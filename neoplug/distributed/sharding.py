"""Sharding of a model over the ranks by FSDP2: each rank holds a part of a weight, and gathers a layer to run it.

Every rank must run a sharded model equally often, and gather a tensor at the same time. R ranks.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from neoplug.errors import RunError

Shard = Literal["none", "base", "full"]


def shard_layers(layers: Iterable[nn.Module], mesh: DeviceMesh, kept: Iterable[nn.Parameter] = ()) -> None:
    """Shard the weights of layers over the ranks, in place; each layer is gathered by itself, and freed after it ran.

    A weight is divided by its first dimension; a number, which has none, is whole on each rank.

    kept  weights that are whole on each rank

    Raises:
        RunError: layers share weights, which would have to be gathered together.
    """
    kept, seen = set(kept), set[nn.Parameter]()
    for layer in layers:
        if not seen.isdisjoint(layer.parameters()):
            raise RunError(
                f"layers of the class {type(layer).__name__} share weights, and cannot be sharded\n"
                "why: each layer is gathered by itself\nfix: leave `train.shard` out"
            )
        seen.update(layer.parameters())
        numbers = {weight for weight in layer.parameters() if not weight.ndim}
        fully_shard(layer, mesh=mesh, ignored_params=kept | numbers)


def shard_root(module: nn.Module, mesh: DeviceMesh, *, rest: bool = False) -> None:
    """Prepare a model whose layers are sharded for its forward pass, in place.

    rest  shard the weights outside the layers too: embedding, norm and head are one unit, which stays gathered from
          the forward pass to the end of backward, so that the objective reads a whole head. Else each rank has them
          whole: the head is needed at the moment at which most memory is in use
    """
    kept = {weight for weight in module.parameters() if not rest or not weight.ndim}
    fully_shard(module, mesh=mesh, reshard_after_forward=False, ignored_params=kept)


def is_sharded(module: nn.Module) -> bool:
    """Return whether weights of a module are sharded."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def reshard(module: nn.Module) -> None:
    """Free what is gathered of a model; its parameters are then the parts, as the optimizer holds them.

    Called before weights are read or written: a forward pass without backward leaves embedding, norm and head gathered.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor, gathered from all ranks if it is sharded. Every rank calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Return tensors of which the sharded ones are gathered, one at a time, and on the CPU. Every rank calls it.

    A tensor of two names remains one.

    keep  False: gather with the others, but return none
    """
    gathered: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in gathered:
            complete = whole(tensor.detach())
            gathered[id(tensor)] = complete.cpu() if keep and isinstance(tensor, DTensor) else tensor.detach()
    return {name: gathered[id(tensor)] for name, tensor in tensors.items()} if keep else {}


def part_like(complete: Tensor, tensor: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor if `tensor`, of the same shape, is sharded; else it, unchanged."""
    if not isinstance(tensor, DTensor) or complete.shape != tensor.shape:
        return complete
    complete = complete.to(tensor.device)
    return distribute_tensor(complete, tensor.device_mesh, tensor.placements, src_data_rank=None)


def whole_optimizer_state(optimizer: Optimizer, *, keep: bool) -> dict[str, Any]:
    """Return an optimizer's state dict, gathered from all ranks where its weights are sharded. Every rank calls it.

    keep  False: gather with the others, but return no state
    """
    state = optimizer.state_dict()
    if not any(isinstance(weight, DTensor) for weight in _weights(optimizer)):
        return state
    gathered = {}
    for weight, values in state["state"].items():
        tensors = whole_tensors({k: v for k, v in values.items() if isinstance(v, Tensor)}, keep=keep)
        gathered[weight] = {**values, **tensors} if keep else {}
    return {**state, "state": gathered}


def part_of_optimizer_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return what this rank's optimizer holds of a whole state dict: of a sharded weight's state the same part.

    The kernels are the optimizer's own, since those that are fused may not take sharded weights.
    """
    weights = _weights(optimizer)
    if not any(isinstance(weight, DTensor) for weight in weights):
        return state
    parts = {
        number: {k: part_like(v, weights[number]) if isinstance(v, Tensor) else v for k, v in values.items()}
        for number, values in state["state"].items()
    }
    groups = [
        {**saved, **{kernel: own[kernel] for kernel in ("fused", "foreach") if kernel in own}}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {"state": parts, "param_groups": groups}


def _weights(optimizer: Optimizer) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def local_bytes(module: nn.Module) -> int:
    """Return the bytes of a model's weights on this rank, each counted once."""
    held = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in module.parameters())
    return sum(weight.numel() * weight.element_size() for weight in held)
