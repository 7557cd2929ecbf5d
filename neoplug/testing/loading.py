"""Conformance tests of ways to load a model, on a random Llama of two layers that is loaded as a run loads one.

    from neoplug.testing import check_load

    def test_mine():
        check_load(Mine())

I inputs, O outputs of a linear layer; V vocabulary.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from neoplug.hookspecs import Role
from neoplug.models.load import load_meta_model, load_model
from neoplug.models.resolve import locate
from neoplug.registry import Plugins, find
from neoplug.runs.skeletons import weight_bytes
from neoplug.testing.families import configuration, make
from neoplug.testing.hooks import global_seeds
from neoplug.testing.loss_examples import hook
from neoplug.testing.options import accepted
from neoplug.testing.search import Broken, Kit, NotApplicable, as_broken, check_close, properties_of
from neoplug.testing.small_model import STEPS, SmallModel, quietly, trainable

# Scales of 4 bits are usually of blocks of 64 weights: they end with the rows, but not in the layers of 96 inputs.
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "initializer_range": 0.05}
GAIN = 0.05  # by which a layer's outputs may be larger or smaller: rounding to nearest keeps them within 0.02
OUTPUT = 0.3  # of the norm of the weights of one output: nf4, fp4 and 4 bits with a scale for each row are within 0.21
LOGITS = 0.6  # of the norm of the logits: nf4, fp4 and 4 bits with a scale for each row are within 0.4
GRADIENT = 0.1  # of the norm of a parameter's gradient: products in bfloat16 are within 0.02
KERNELS = 0.01  # of 1 + the largest logit of a token: another kernel in bfloat16
SEED = 90_210  # of the global generators; no plugin seeds them with the same
SCALES = 1 / 8  # of the bytes: float32 for each block of 64 weights in 4 bits

# What of torch is the same for a whole process -> how it is read and set.
SETTINGS: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the default data type": (torch.get_default_dtype, torch.set_default_dtype),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "whether gradients are recorded": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the precision of products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
}


def check_load(plugin: Any) -> None:
    """Test every property of ways to load a model: of plugins that implement `load_kwargs`, `after_load` or both.

    Raises AssertionError for a property that does not hold.
    """
    LOAD.hold(plugin, 0)


class LoadProperties:
    """The properties of ways to load: each method without underscore, which raises Broken where it does not hold."""

    def loads(self, plugin: Any) -> None:
        """Teacher and student load with it, frozen, on their device, with finite logits of the whole vocabulary."""
        roles: tuple[Role, ...] = ("teacher", "student")
        for role in roles:
            model = self._loaded(plugin, role)
            if elsewhere := {str(weight.device) for weight in model.parameters()} - {"cpu"}:
                raise Broken(f"weights of the {role} are on {', '.join(sorted(elsewhere))} in place of cpu")
            logits = self._small.logits(model)
            if logits.shape[-1] != configuration("llama").vocab_size or not logits.isfinite().all():
                raise Broken(f"the logits of the {role} are of the shape {list(logits.shape)}, or not finite")

    def repeated(self, plugin: Any) -> None:
        """Loaded again, the model has the same weights and logits."""
        models = []
        for number in range(2):
            with global_seeds(number):
                models.append(self._loaded(plugin))
        first, again = models
        if name := _different_weight(first, again):
            raise Broken(f"loaded again, `{name}` is another")
        check_close(self._small.logits(again), self._small.logits(first), "loaded again, a logit", tolerance=1e-5)

    def options(self, plugin: Any) -> None:
        """Each option changes the weights, their types or the logits of the loaded model."""
        plain = self._loaded(plugin)
        logits = self._small.logits(plain)
        for option in (field.name for field in fields(plugin)):
            tried = []
            for value, model in accepted(plugin, option, self._load_kept):
                tried.append(f"{value!r}")
                if _different_weight(plain, model) or not torch.equal(self._small.logits(model), logits):
                    break
            else:
                if tried:
                    raise Broken(f"`{option}: {tried[0]}` loads the same model as {getattr(plugin, option)!r}")

    def weights(self, plugin: Any) -> None:
        """Each layer multiplies by its original weights, up to the rounding of 4 bits; a wrong scale is more."""
        found = _weights(self._loaded(plugin), self._layers)
        for name, original in self._layers.items():
            gain = float((found[name] * original).sum() / original.square().sum())
            if not abs(gain - 1) <= GAIN:
                raise Broken(f"`{name}` multiplies by {gain:.3g} times its original weights")
            off = float(((found[name] - original).norm(dim=1) / original.norm(dim=1)).max())
            if not off <= OUTPUT:
                raise Broken(f"the weights of an output of `{name}` are off by {off:.2g} of their norm")

    def near(self, plugin: Any) -> None:
        """Its logits are at most 0.6 of their norm from those of the original model, where 4 bits are within 0.4."""
        logits = self._small.logits(self._small.base)
        off = float((self._small.logits(self._loaded(plugin)) - logits).norm() / _centred(logits).norm())
        if not off <= LOGITS:
            raise Broken(f"the logits are off by {off:.2g} of their norm")

    def modes(self, plugin: Any) -> None:
        """It computes the same in training as in evaluation, before and after."""
        model, ids = self._loaded(plugin), self._small.text[:2]
        evaluated = self._small.logits(model)
        trained = model.train()(input_ids=ids, use_cache=False).logits.detach()
        check_close(trained, evaluated, "in training, a logit", tolerance=KERNELS)
        check_close(self._small.logits(model), evaluated, "in the next evaluation, a logit", tolerance=KERNELS)

    def documents(self, plugin: Any) -> None:
        """The logits of a document do not depend on the others of a batch, where activations are large too."""
        model, ids = self._loaded(plugin), self._small.text
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("layernorm.weight"):
                    weight *= 10  # LLM.int8() treats a column apart where any token of the batch has more than 6 in it
            one, other = (model(input_ids=torch.stack([ids[0], beside])).logits[0] for beside in (ids[1], ids[2]))
        check_close(other, one, "with another document in the batch, a logit", tolerance=1e-4)

    def gradients(self, plugin: Any) -> None:
        """LoRA on it has the gradients of a plain model with the weights that it multiplies by, after an evaluation."""
        model, plain = self._loaded(plugin), copy.deepcopy(self._small.base)
        for name, weight in _weights(model, self._layers).items():
            plain.get_submodule(name).weight = nn.Parameter(weight, requires_grad=False)
        found, wanted = (self._gradients(model) for model in (model, plain))
        for name, expected in wanted.items():
            off = float((found[name] - expected).norm() / expected.norm())
            if not off <= GRADIENT:
                raise Broken(f"the gradient of `{name}` is off by {off:.2g} of its norm")

    def trained(self, plugin: Any) -> None:
        """LoRA on it lowers the loss, and changes no weight of the loaded model."""
        model, lora = self._loaded(plugin), _lora()
        before = {name: (weight, weight.detach().clone()) for name, weight in model.named_parameters()}
        student = self._small.adapted(lora, model)
        start = self._small.loss(student.eval()).item()
        self._small.train(lora, student, last=STEPS)
        fall = start - self._small.loss(student.eval()).item()
        if not fall > 0.01:
            raise Broken(f"in {STEPS} steps the loss falls by {fall:.2g} nats")
        if moved := [name for name, (now, then) in before.items() if not torch.equal(now, then)]:
            raise Broken(f"training changes {len(moved)} weights of the loaded model, as `{moved[0]}`")

    def planned(self, plugin: Any) -> None:
        """The loaded weights take the bytes that a plan foretells, up to an eighth for scales."""
        model = self._loaded(plugin)
        found = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        with as_broken(), _settings_kept():
            skeleton = load_meta_model(locate(str(self._small.folder)), "student")
            planned = weight_bytes(_plugins(plugin, "student"), "student", skeleton, torch.float32)
        if not abs(found - planned) <= SCALES * planned:
            raise Broken(f"they take {found:,} bytes, and {planned:,} are planned")

    def untouched(self, plugin: Any) -> None:
        """It leaves the process as it was: random numbers, and torch's data type, threads, gradients and precision."""
        with global_seeds(SEED):
            drawn = _draws()
        with global_seeds(SEED), _settings_kept(), as_broken():
            before = {name: read() for name, (read, _) in SETTINGS.items()}
            self._load(plugin)
            changed = [name for name, (read, _) in SETTINGS.items() if read() != before[name]]
            if _draws() != drawn:
                changed.append("the state of a global generator of random numbers")
        if changed:
            raise Broken(f"it changes {' and '.join(changed)}")

    @cached_property
    def _small(self) -> SmallModel:
        """A random Llama of two layers in a folder."""
        self._temporary = TemporaryDirectory(prefix="neoplug-check-", ignore_cleanup_errors=True)
        return SmallModel(make("llama", Path(self._temporary.name), seed=1, **SIZES))

    @cached_property
    def _layers(self) -> dict[str, Tensor]:
        """The original weights of each linear layer, [O, I], by its name."""
        named = self._small.base.named_modules()
        return {name: layer.weight for name, layer in named if isinstance(layer, nn.Linear)}

    def _load(self, plugin: Any, role: Role = "student") -> Any:
        """Return the model as a run loads it. Raises TypeError for a plugin without hooks of loading."""
        if hook(plugin, "load_kwargs") is None and hook(plugin, "after_load") is None:
            raise TypeError(f"{type(plugin).__name__} has neither `load_kwargs` nor `after_load`")
        return load_model(
            locate(str(self._small.folder)), plugins=_plugins(plugin, role), role=role,
            section="teacher.load" if role == "teacher" else "student.load",
            dtype=torch.float32, device="cpu", attn_implementation=None,
        )  # fmt: skip

    def _load_kept(self, plugin: Any) -> Any:
        """Load the student, and restore what that changes in the process, which one property is about."""
        with _settings_kept():
            return self._load(plugin)

    def _loaded(self, plugin: Any, role: Role = "student") -> Any:
        """Load as `_load_kept`. Raises Broken in place of the error that a run would show."""
        with _settings_kept(), as_broken():
            return self._load(plugin, role)

    def _gradients(self, model: Any) -> dict[str, Tensor]:
        """Return the gradients of LoRA with random matrices, by name."""
        student = self._small.adapted(_lora(), model)
        noise = torch.Generator().manual_seed(3)
        for parameter in trainable(student).values():
            parameter.data = parameter.data.float() + 0.05 * torch.randn(parameter.shape, generator=noise)
        self._small.logits(student)  # evaluation repacks 4-bit layers on some CPUs
        torch.autograd.backward(self._small.loss(student.train()))
        none = {name: torch.zeros_like(weight) for name, weight in trainable(student).items() if weight.grad is None}
        return none | {
            name: cast(Tensor, weight.grad) for name, weight in trainable(student).items() if name not in none
        }


LOAD = Kit(
    "way to load a model",
    {},
    once={name: quietly(check) for name, check in properties_of(LoadProperties()).items()},
    exempt=("options", "weights", "near"),  # an option of memory or speed alone; fewer than 4 bits
)


def _plugins(plugin: Any, role: Role) -> Plugins:
    """Return the plugins of a recipe whose model of this role is loaded with this one alone."""
    return Plugins({f"{role}.load": {type(plugin).__name__: plugin}})


def _lora() -> Any:
    """Return the built-in adapter `lora` on all linear layers."""
    return find("lora", Path.cwd()).load()(r=4)


def _weights(model: Any, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights [O, I] that a model's layers of these names multiply by, from their outputs of unit vectors.

    Raises NotApplicable where the model has no such layer.
    """
    found = {}
    for name, original in layers.items():
        try:
            layer = model.get_submodule(name)
        except AttributeError as error:
            raise NotApplicable(f"the loaded model has no layer `{name}`") from error
        with torch.no_grad():
            found[name] = layer(torch.eye(original.shape[1])).float().T.contiguous()
    return found


def _different_weight(one: Any, other: Any) -> str:
    """Return the name of a stored tensor that differs between two models; an empty text where none does."""
    first, second = one.state_dict(), other.state_dict()
    if only := first.keys() ^ second.keys():
        return str(min(only))
    for name, tensor in first.items():
        if tensor.dtype != second[name].dtype or not torch.equal(tensor, second[name]):
            return str(name)
    return ""


def _centred(logits: Tensor) -> Tensor:
    """Return logits [..., V] with a mean of 0 over the vocabulary."""
    return logits - logits.mean(-1, keepdim=True)


def _draws() -> tuple[float, ...]:
    """Return a number of each global generator."""
    return torch.rand(()).item(), random.random(), float(np.random.rand())


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Restore the settings of the process after the block."""
    before = [(write, read()) for read, write in SETTINGS.values()]
    try:
        yield
    finally:
        for write, value in before:
            write(value)
