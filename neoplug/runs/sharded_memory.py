"""The memory of one of several ranks over which models are sharded, by formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neoplug.distributed.sharding import Shard
from neoplug.hookspecs import Role
from neoplug.models.recorder import decoder_layers
from neoplug.recipe import ResolvedRecipe
from neoplug.runs.sharding import is_asked, is_read_in_parts, number_of_processes

if TYPE_CHECKING:
    from neoplug.runs.skeletons import Skeleton


@dataclass(frozen=True)
class LayersShare:
    """The share of a model's bytes that its decoder layers have, and the number of layers.

    in_parts  whether a rank reads only its part of the weights
    """

    share: float
    layers: int
    in_parts: bool


def shares_of_layers(checked: ResolvedRecipe, models: Mapping[Role, Skeleton]) -> dict[Role, LayersShare]:
    """Return the share of each model that would be sharded: none in one process.

    models  without an adapter
    """
    if not is_asked(checked):
        return {}
    shares: dict[Role, LayersShare] = {}
    for role, model in models.items():
        section = getattr(checked.recipe, role)
        if role == "teacher" and (section.device or section.cache):
            continue
        layers = decoder_layers(model.skeleton)
        outside = model.parameters - sum(weight.numel() for weight in layers.parameters())  # is never quantised
        share = 1 - outside * model.dtype.itemsize / model.bytes
        shares[role] = LayersShare(share, len(layers), role == "teacher" and is_read_in_parts(checked.plugins, role))
    return shares


def per_rank(
    parts: Mapping[str, int], shares: Mapping[Role, LayersShare], trains_whole: bool, shard: Shard
) -> dict[str, int]:
    """Return the memory in bytes of one of several ranks over which `train.shard` divides the weights.

    A model's layers are divided; its embedding, norm and head are whole, but for those of a student that is trained
    under `full`, with its gradients and its optimizer. Two layers are gathered: one that runs, and the next.

    parts   the parts of the memory of one process, as `plan` estimates them, with their total
    shares  of the models that are sharded
    """
    parts, ranks = dict(parts), number_of_processes()
    del parts["total"]
    divided, gathered = dict(parts), []
    for role, of in shares.items():
        name, layer = f"{role}_weights", of.share / of.layers
        if role == "student" and trains_whole and shard == "full":
            held = parts["trainable_weights"]
            for part in ("trainable_weights", "gradients", "optimizer"):
                divided[part] = round(parts[part] / ranks)
            gathered.append(held * (2 * (1 - of.share) + 3 * layer))  # with the gradients of what is gathered
        elif name in parts:
            divided[name] = round(parts[name] * (1 - of.share + of.share / ranks))
            gathered.append(2 * parts[name] * layer)
    divided["gathered_weights"] = round(max(gathered, default=0))
    # The student is whole on each rank until its adapter is added, and the copy on which saving is tried is whole too.
    whole = (
        parts["trainable_weights"] if trains_whole else 2 * parts["student_weights"] + 3 * parts["trainable_weights"]
    )
    del divided["at_start"]
    at_start = [whole + divided.get("teacher_weights", 0)]
    at_start += [parts["teacher_weights"] for role, of in shares.items() if role == "teacher" and not of.in_parts]
    divided["at_start"] = max(0, max(at_start) - sum(divided.values()))
    return divided | {"total": sum(divided.values())}
