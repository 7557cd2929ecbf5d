"""Sharding of a run's models over its processes: what can be sharded, and the student with its adapter, sharded."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neoplug.distributed.sharding import local_bytes, part_like, shard_layers, shard_root, whole
from neoplug.errors import Problem, RecipeError, RunError
from neoplug.hookspecs import Role
from neoplug.models.load import load_config, plugin_kwargs
from neoplug.models.recorder import decoder_layers
from neoplug.models.reference import ResolvedModel
from neoplug.recipe import ResolvedRecipe
from neoplug.registry import Plugins, path_of
from neoplug.training.optim import make_optimizer

if TYPE_CHECKING:
    from neoplug.distributed.world import World

logger = logging.getLogger(__name__)

PATH = ("train", "shard")


def number_of_processes() -> int:
    """Return how many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_asked(checked: ResolvedRecipe) -> bool:
    """Return whether a recipe asks for sharding, and there are processes to shard over."""
    return checked.recipe.train.shard != "none" and number_of_processes() > 1


def validate_quantisation(
    checked: ResolvedRecipe, role: Role, located: ResolvedModel, load_kwargs: Mapping[str, Any]
) -> None:
    """Refuse to shard a model that is quantised otherwise than to the 4 bits of bitsandbytes, by a `load` plugin.

    FSDP divides the bytes of packed weights. A layer of 4 bits has the scales itself, whole, and gives them to the
    weight that FSDP gathers; one of 8 bits reads attributes of its weight that this one lacks (bitsandbytes 0.50).

    load_kwargs  what the recipe's `load` plugins load it with

    Raises:
        RecipeError: it is quantised so.
    """
    section = getattr(checked.recipe, role)
    if not is_asked(checked) or (role == "teacher" and (section.device or section.cache)):
        return
    chosen = load_kwargs.get("quantization_config")
    stored = getattr(load_config(located, (role, "model")), "quantization_config", None)
    if (chosen or stored) and not (chosen and all(map(_is_in_four_bits, filter(None, (chosen, stored))))):
        raise _refused(
            f"the {role} is quantised, and cannot be sharded",
            "of quantised weights only those that a `load` plugin has in 4 bits of bitsandbytes, as bytes, are divided",
            f"name a plugin of 4 bits under `{role}.load`, load the model unquantised, or leave `shard` out",
        )


def _is_in_four_bits(quantisation: Any) -> bool:
    """Return whether a quantisation config, or the map of one in a config.json, is of 4 bits that are kept as bytes."""
    options = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    return bool(options.get("load_in_4bit")) and options.get("bnb_4bit_quant_storage", "uint8") == "uint8"


def is_read_in_parts(plugins: Plugins, role: Role) -> bool:
    """Return whether a rank reads only its part of a sharded model: a weight that is quantised then is read whole."""
    return "quantization_config" not in plugin_kwargs(plugins, role)


def validate_sharded(checked: ResolvedRecipe, adapted: nn.Module, of_base: Sequence[nn.Parameter]) -> None:
    """Refuse a student of which `train.shard` would shard nothing, or something that must be whole.

    adapted  the student with its adapter, on the meta device
    of_base  those of its weights that are the base's
    """
    recipe = checked.recipe
    if not is_asked(checked):
        return
    try:
        layers = decoder_layers(adapted)
    except RunError as error:
        why = "each of its decoder layers is gathered by itself, and its class does not have them as one list"
        raise _refused("the student cannot be sharded", why, "leave `shard` out") from error
    (name,) = checked.plugins.implements("add_adapter")
    if recipe.train.shard == "base":
        inside = {id(weight) for layer in layers for weight in layer.parameters()}
        if all(weight.requires_grad for weight in of_base if id(weight) in inside):
            why = f"`base` shards frozen weights, and `{name}` trains all of the layers"
            raise _refused("nothing of the student would be sharded", why, "set `shard: full`")
        return
    base = set(map(id, of_base))
    if any(weight.requires_grad and id(weight) not in base for weight in adapted.parameters()):
        why = f"`full` shards the trained weights of the base, and `{name}` adds small weights of its own"
        raise _refused(f"the weights of `{name}` cannot be sharded", why, "set `shard: base`: each rank has them whole")
    if recipe.taught_by == "ema":
        why = "`self: ema` exchanges the student's weights for their average, and `full` leaves a rank parts of them"
        raise _refused("the teacher cannot be sharded with the student", why, "set `shard: base`, or name a teacher")


def validate_optimizer(checked: ResolvedRecipe, world: World) -> None:
    """Try the optimizer of a student that is to be sharded whole; in one process, warn that nothing will be.

    Two steps on a layer of every rank's own must be two steps on the same layer, sharded.

    Raises:
        RecipeError: it steps otherwise on sharded weights, or its state cannot be gathered.
    """
    plugins, shard = checked.plugins, checked.recipe.train.shard
    if shard != "none" and world.size == 1:
        logger.warning("train.shard: %s shards nothing: there is one process", shard)
    if shard != "full" or world.size == 1:
        return
    ((section, name),) = plugins.named("make_optimizer")
    try:
        fault = _fault_on_parts(plugins, world, checked.recipe.train.learning_rate)
    except Exception as error:  # torch raises NotImplementedError, others what they like
        fault = f"on sharded weights it fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if fault:
        what, fix = (
            f"`{name}` cannot train with `shard: full`",
            "name another optimizer; or set `shard: base`, and an adapter",
        )
        raise RecipeError([Problem(what, fault, fix, path_of(section, name))])


def _fault_on_parts(plugins: Plugins, world: World, learning_rate: float) -> str | None:
    """Return what is wrong with the optimizer of a sharded layer; None where nothing is."""
    rng = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=rng) for shape in ((8, 6), (8,))]
    gradients = [[torch.randn(value.shape, generator=rng) for value in values] for _ in range(2)]
    layers = [nn.Linear(6, 8, device=world.device) for _ in range(2)]
    for layer in layers:
        layer.load_state_dict({"weight": values[0], "bias": values[1]})
    shard_layers(layers[1:], world.mesh)
    for layer in layers:
        optimizer = make_optimizer(layer, plugins, learning_rate)
        for step in gradients:
            for weight, gradient in zip(layer.parameters(), step, strict=True):
                weight.grad = part_like(gradient.to(world.device), weight)
            optimizer.step()
    state = optimizer.state_dict()
    if set(state) != {"state", "param_groups"}:
        return f"its state has the keys {', '.join(sorted(state))}, and not those of torch's optimizers"
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, kept in state["state"].items():
        for key, value in kept.items():
            if isinstance(value, Tensor) and value.numel() > 1 and value.shape != weights[number].shape:
                return f"its `{key}` has the shape {list(value.shape)}, another than the weight, so it has no part"
    for alone, sharded in zip(*(layer.parameters() for layer in layers), strict=True):
        if not torch.allclose(alone, whole(sharded.detach()), rtol=1e-4, atol=1e-6):
            return "its steps on sharded weights are others than on whole ones"
    return None


def _refused(what: str, why: str, fix: str) -> RecipeError:
    return RecipeError([Problem(what, why, fix, PATH)])


def shard_student(checked: ResolvedRecipe, module: nn.Module, of_base: Container[str], world: World) -> None:
    """Shard the student with its adapter as the recipe says, in place, before its optimizer is made.

    Its weights are then other objects; whoever still refers to one keeps it in memory, whole.

    of_base  names of those of its weights that are the base's: all others are whole on each rank
    """
    if not is_asked(checked):
        return
    before, trains = local_bytes(module), checked.recipe.train.shard == "full"
    kept = [w for name, w in module.named_parameters() if name not in of_base or (w.requires_grad and not trains)]
    shard_layers(decoder_layers(module), world.mesh, kept)
    shard_root(module, world.mesh, rest=trains)
    logger.info("the student is sharded: %.2f of its %.2f GB on a rank", local_bytes(module) / 1e9, before / 1e9)
