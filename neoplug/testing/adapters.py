"""Conformance tests of adapters, on a random model of two layers or on any other.

    from neoplug.testing import check_adapter

    def test_mine():
        check_adapter(Mine())

A property is tested as the adapter declares it in `traits`: a restriction that it declares and does not have fails too.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from neoplug.errors import RecipeError, UsageError
from neoplug.models.quiet import quiet
from neoplug.models.stored_adapter import virtual_tokens
from neoplug.models.switched import adapter_off
from neoplug.registry import Plugins
from neoplug.registry.adapter_traits import AdapterTraits
from neoplug.runs.preflight import validate_separate_adapter
from neoplug.runs.saved_form import is_peft, parts_of, validate_saved_form
from neoplug.teachers.itself import WeightAverage
from neoplug.testing.families import random_model
from neoplug.testing.four_bits import FOUR_BITS, in_four_bits
from neoplug.testing.hooks import answer, global_seeds
from neoplug.testing.loss_examples import hook
from neoplug.testing.options import each_option
from neoplug.testing.refusals import recipe_with, refused_by_check, refusing
from neoplug.testing.search import Broken, Kit, NotApplicable, check_close, properties_of
from neoplug.testing.small_model import (
    SIZES,
    STEPS,
    SmallModel,
    optimizer_of,
    quietly,
    same,
    trainable,
    trains_everything,
)
from neoplug.training import checkpoint

RATES = (1e-2,)


def check_adapter(adapter: Any, folder: Path | None = None) -> None:
    """Test every property of adapters.

    folder  of a model of transformers with its tokenizer; None: a random Llama of two layers

    Raises AssertionError for a property that does not hold.
    """
    adapter_kit(folder).hold(adapter, 0)


def adapter_kit(folder: Path | None = None, rates: tuple[float, ...] = RATES) -> Kit:
    """Return the properties of adapters on a model.

    rates  learning rates, of which one must lower the loss within STEPS steps
    """
    properties = properties_of(AdapterProperties(folder, rates))
    return Kit("adapter", {}, once={name: quietly(check) for name, check in properties.items()})


class AdapterProperties:
    """The properties of adapters: each method without underscore, which raises Broken where it does not hold."""

    def __init__(self, folder: Path | None, rates: tuple[float, ...]) -> None:
        self._small, self._rates = SmallModel(folder), rates

    def identity(self, adapter: Any) -> None:
        """At the start it computes what the base does, unless it declares that it starts elsewhere."""
        student = self._small.adapted(adapter)
        off = self._distance(student)
        if weights := answer(adapter, "base_weights", model=student):
            changed = copy.deepcopy(self._small.base)
            changed.load_state_dict(weights)
            alone = self._distance(changed)
            if not 1e-5 < off < alone:
                raise Broken(f"logits differ by {off:.2g} from the base's, and those of `base_weights` by {alone:.2g}")
        elif declared(adapter, "starts_elsewhere"):
            if off <= 1e-5:
                raise Broken("it declares `starts_elsewhere`, but its logits are those of the base")
        elif off > 1e-3 and not virtual_tokens(student):
            raise Broken(f"logits differ by {off:.2g} from those of the base, relative to the largest")

    def _distance(self, model: Any) -> float:
        """Return the largest difference of a model's logits from the base's, relative to the largest logit."""
        wanted = self._small.logits(self._small.base)
        return float((self._small.logits(model) - wanted).abs().max() / wanted.abs().max())

    def base(self, adapter: Any) -> None:
        """Training changes no weight of the base, unless it trains all of them or declares that it changes them."""
        model = self._small.model()
        before = {parameter: parameter.detach().clone() for parameter in model.parameters()}
        names = {parameter: name for name, parameter in model.named_parameters()}
        student = self._small.adapted(adapter, model)
        everything = trains_everything(student)
        if trained := [names[parameter] for parameter in before if parameter.requires_grad and not everything]:
            raise Broken(f"it trains {len(trained)} weights of the base, as `{trained[0]}`")
        moved = [names[now] for now, then in before.items() if not torch.equal(now, then)]
        if moved and not declared(adapter, "changes_base"):
            raise Broken(f"`add_adapter` changes {len(moved)} weights of the base, as `{moved[0]}`")
        if not moved and declared(adapter, "changes_base"):
            raise Broken("it declares `changes_base`, but changes no weight of the base")
        before = {parameter: parameter.detach().clone() for parameter in before}
        self._small.train(adapter, student)
        if moved := [names[now] for now, then in before.items() if torch.equal(now, then) == everything]:
            changed = "does not change" if everything else "changes"
            raise Broken(f"training {changed} {len(moved)} weights of the base, as `{moved[0]}`")

    def trained(self, adapter: Any) -> None:
        """Training changes every trainable parameter."""
        student = self._small.adapted(adapter, steps=100)  # in early steps of many no rank is pruned
        before = {name: parameter.detach().clone() for name, parameter in trainable(student).items()}
        if not before:
            raise Broken("no parameter is trainable")
        self._small.train(adapter, student)
        stuck = [name for name, parameter in trainable(student).items() if torch.equal(parameter, before[name])]
        if stuck:
            raise Broken(f"{len(stuck)} of {len(before)} parameters do not change, as `{stuck[0]}`")

    def loss_falls(self, adapter: Any) -> None:
        """Training lowers the loss."""
        falls = []
        for rate in self._rates:
            student = self._small.adapted(adapter)
            before = self._small.loss(student.eval()).item()
            self._small.train(adapter, student, optimizer_of(student, rate), last=STEPS)
            falls.append(before - self._small.loss(student.eval()).item())
        if max(falls) <= 0.01:
            raise Broken(f"in {STEPS} steps the loss falls by {max(falls):.2g} nats")

    def other_widths(self, adapter: Any) -> None:
        """With its default options, all this is so for models that are narrower and wider."""
        for width in (24, 96):
            sizes = {"hidden_size": width, "intermediate_size": 2 * width, "head_dim": width // 4}
            vocabulary = self._small.base.config.vocab_size
            base = random_model("llama", seed=5, **SIZES | sizes, num_hidden_layers=1, vocab_size=vocabulary)
            student = self._small.adapted(adapter, copy.deepcopy(base))
            if not declared(adapter, "starts_elsewhere"):
                check_close(
                    self._small.logits(student), self._small.logits(base), "the logits at the start", tolerance=1e-3
                )
            before = self._small.loss(student).item()
            self._small.train(adapter, student, last=STEPS)
            if self._small.loss(student.eval()).item() >= before:
                raise Broken(f"the loss of a model of width {width} does not fall")

    def switched_off(self, adapter: Any) -> None:
        """Turned off, it leaves the untouched base, which can then be the teacher; or that is refused."""
        student = self._small.adapted(adapter)
        if trains_everything(student):
            raise NotApplicable("it trains all weights, so there is no base left")
        if not hasattr(student, "disable_adapter"):
            with refusing(RecipeError, "an adapter that cannot be turned off"):
                validate_separate_adapter([], student, "the adapter")
            return
        self._small.train(adapter, student)
        trained, on = trainable(student).keys(), self._small.logits(student)
        with adapter_off(student)():
            off = self._small.logits(student)
        if torch.equal(off, self._small.logits(self._small.base)) == declared(adapter, "changes_base"):
            raise Broken("turned off, it is " + ("" if declared(adapter, "changes_base") else "not ") + "the base")
        if trainable(student).keys() != trained or not torch.equal(self._small.logits(student), on):
            raise Broken("turned off and on again, it is another model")
        if torch.equal(on, off):
            raise Broken("turned off, its logits are the same as before")

    def averaged(self, adapter: Any) -> None:
        """It computes with an average of its weights in their place as with a copy of that average."""
        student = self._small.adapted(adapter)
        self._small.train(adapter, student)
        average, on = WeightAverage.of(student, 0.5), self._small.logits(student)
        for value in average.values.values():
            value.mul_(1.25).add_(0.01)
        with average.in_place():
            found = self._small.logits(student)
        if not torch.equal(self._small.logits(student), on):
            raise Broken("after the average was in place, it is another model")
        if torch.equal(found, on):
            raise Broken("other weights in place of its own do not change its logits")
        with torch.no_grad():
            for name, weight in trainable(student).items():
                weight.copy_(average.values[name])
        if not torch.equal(self._small.logits(student), found):
            raise Broken("it computes something else with a copy of the average than with the average in place")

    def saved(self, adapter: Any) -> None:
        """Saved, and loaded on the original base by another instance or by peft, it computes the same."""
        from peft import PeftModel

        model = self._small.model()
        parts, student = parts_of(model), self._small.adapted(adapter, model)
        if trains_everything(student):
            raise NotApplicable("neoplug itself saves a whole model")
        self._small.train(adapter, student)
        validate_saved_form(Plugins({"adapter": {"adapter": adapter}}), parts, student)
        wanted, weights = self._small.logits(student), answer(adapter, "base_weights", model=student)
        base = self._small.model()
        if weights:  # a run stores them as the base
            base.load_state_dict(weights)
        with TemporaryDirectory() as folder:
            path = Path(folder)
            answer(adapter, "save_adapter", model=student, path=path)
            if not hook(adapter, "save_adapter"):
                student.save_pretrained(path)
            loaded = answer(replace(adapter), "load_adapter", model=base, path=path)
            if loaded is None:
                loaded = PeftModel.from_pretrained(base, path)
            found = self._small.logits(loaded)
        rewritten = hook(adapter, "save_adapter") and not hook(adapter, "load_adapter")  # as another kind of adapter
        exact = not declared(adapter, "changes_base") and not rewritten
        check_close(found, wanted, "the logits of the loaded adapter", tolerance=1e-5 if exact else 2e-3)
        if (wanted - self._small.logits(self._small.base)).abs().max() < 1e-3:
            raise Broken("its logits are those of the base after training, so loading it shows nothing")

    def merged(self, adapter: Any) -> None:
        """Merged, saved and loaded as a plain model, it computes the same, or merging is refused with the reason."""
        from transformers import AutoModelForCausalLM

        student = self._small.adapted(adapter)
        if trains_everything(student):
            raise NotApplicable("there is nothing to merge: it trains the base's own weights")
        self._small.train(adapter, student)
        wanted = self._small.logits(student)
        if reason := AdapterTraits.of(adapter).cannot_merge:
            with refusing(UsageError, "merging", reason):
                answer(adapter, "merge_adapter", model=student)
            return
        own = hook(adapter, "merge_adapter")
        merged = answer(adapter, "merge_adapter", model=student) if own else student.merge_and_unload()
        if is_peft(merged) or hasattr(merged, "peft_config"):
            raise Broken("the merged model is still one of peft")
        with TemporaryDirectory() as folder, quiet():
            merged.save_pretrained(folder)
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        check_close(self._small.logits(merged), wanted, "the logits of the merged model", tolerance=2e-3)
        check_close(self._small.logits(loaded), wanted, "the logits of the merged model that is saved", tolerance=2e-3)

    def resumed(self, adapter: Any) -> None:
        """Resumed from a checkpoint by another instance, a run ends with the same weights."""
        plugins = [replace(adapter) for _ in range(2)]
        students = [self._small.adapted(plugin) for plugin in plugins]
        optimizers = [optimizer_of(student) for student in students]
        schedules = [LambdaLR(optimizer, lambda _: 1.0) for optimizer in optimizers]
        named = [Plugins({"adapter": {"adapter": plugin}}) for plugin in plugins]
        self._small.train(plugins[0], students[0], optimizers[0], last=3)
        with TemporaryDirectory() as folder:
            states = [checkpoint.pack(named[0])]
            path = checkpoint.save(Path(folder), 3, students[0], optimizers[0], schedules[0], named[0], states, {})
            checkpoint.load(path, students[1], optimizers[1], schedules[1], named[1])
        for plugin, student, optimizer in zip(plugins, students, optimizers, strict=True):
            self._small.train(plugin, student, optimizer, first=3, last=STEPS)
        first, second = (student.state_dict() for student in students)
        if other := [name for name in first if not torch.equal(first[name], second[name])]:
            raise Broken(f"{len(other)} tensors differ from those of the uninterrupted run, as `{other[0]}`")

    def seeds(self, adapter: Any) -> None:
        """Its start depends on the given generator alone, as all ranks need, and on its seed."""
        students = []
        for number, seed in enumerate((1, 1, 2)):
            with global_seeds(number):
                students.append(self._small.adapted(adapter, seed=seed))
        first, again, other = (student.state_dict() for student in students)
        if list(first) != list(again) or any(not torch.equal(first[name], again[name]) for name in first):
            raise Broken("the same generator gives another start: it draws from elsewhere")
        kept = [student.peft_config["default"].to_dict() if is_peft(student) else None for student in students]
        if kept[0] != kept[1]:
            raise Broken("the same generator gives another configuration")
        alike = all(torch.equal(first[name], other[name]) for name in first) and kept[0] == kept[2]
        if alike == declared(adapter, "seedless") or trains_everything(students[0]):
            return
        found = "the same start: declare `seedless`" if alike else "another start, and it declares `seedless`"
        raise Broken(f"another generator gives {found}")

    def reads_data(self, adapter: Any) -> None:
        """If it declares that it reads data, its start depends on them, and is refused without them."""
        if not declared(adapter, "reads_data"):
            raise NotApplicable("it does not declare `reads_data`")
        some, others = self._small.batches[:1], self._small.batches[1:]
        starts = [trainable(self._small.adapted(adapter, batches=batches)) for batches in (some, some, others)]
        first, again, other = starts
        if any(not torch.equal(first[name], again[name]) for name in first):
            raise Broken("the same data give another start")
        if all(torch.equal(first[name], other[name]) for name in first):
            raise Broken("it declares `reads_data`, but other data give the same start")
        with refusing(UsageError, "a start without data", "training data"):
            self._small.adapted(adapter, data=False)

    def accumulated(self, adapter: Any) -> None:
        """The gradient of a batch is the sum of those of its documents, unless it declares that it mixes documents."""
        gradients = []
        for rows in ([slice(0, 2)], [slice(0, 1), slice(1, 2)]):
            student = self._small.adapted(adapter).eval()  # without dropout
            for part in rows:
                torch.autograd.backward(self._small.loss(student, self._small.text[part]) / len(rows))
            gradients.append({name: parameter.grad for name, parameter in trainable(student).items()})
        whole, summed = gradients
        other = [name for name in whole if not same(whole[name], summed[name], rtol=1e-3, atol=1e-5)]
        if other and not declared(adapter, "mixes_documents"):
            raise Broken(f"the gradients of a batch's documents do not add up to that of the batch, as of `{other[0]}`")
        if not other and declared(adapter, "mixes_documents"):
            raise Broken("it declares `mixes_documents`, but the gradients of a batch's documents add up to that of it")

    def checkpointed(self, adapter: Any) -> None:
        """Gradient checkpointing changes no gradient, or is refused with the reason."""
        if declared(adapter, "not_checkpointed"):
            refused_by_check(adapter, "gradient checkpointing", gradient_checkpointing=True)
            return
        gradients = []
        for checkpointing in (False, True):
            student = self._small.adapted(adapter).train()
            if checkpointing:
                student.gradient_checkpointing_enable({"use_reentrant": False})
            torch.manual_seed(0)
            torch.autograd.backward(self._small.loss(student))
            gradients.append({name: parameter.grad for name, parameter in trainable(student).items()})
        if other := [name for name in gradients[0] if not same(gradients[0][name], gradients[1][name])]:
            raise Broken(f"with gradient checkpointing {len(other)} gradients differ, as that of `{other[0]}`")

    def planned(self, adapter: Any) -> None:
        """On the meta device, without weights and data, it has the same parameters, as a plan needs."""
        bases = self._small.skeleton(), self._small.model()
        planned, real = (trainable(self._small.adapted(adapter, base)) for base in bases)
        if planned.keys() != real.keys():
            raise Broken(f"other parameters are trained, as `{min(planned.keys() ^ real.keys())}`")
        counts = [sum(parameter.numel() for parameter in model.values()) for model in (planned, real)]
        if counts[0] != counts[1]:
            raise Broken(f"{counts[0]:,} trainable parameters are planned, and there are {counts[1]:,}")
        if not all(parameter.is_meta for parameter in planned.values()):
            raise Broken("it makes parameters on another device than that of the base's")
        if all(planned[name].shape == real[name].shape for name in real) == declared(adapter, "shaped_by_weights"):
            raise Broken(
                "its shapes do " + ("not " if declared(adapter, "shaped_by_weights") else "") + "depend on weights"
            )

    def options(self, adapter: Any) -> None:
        """Each option reaches the configuration of peft, unless `own_options` names it, or its values are refused."""
        if not is_peft(plain := self._small.adapted(adapter, self._small.skeleton())):
            raise NotApplicable("it is no adapter of peft")
        for option, value, changed in each_option(
            adapter, lambda other: self._small.adapted(other, self._small.skeleton())
        ):
            if option in AdapterTraits.of(adapter).own_options or trainable(changed).keys() != trainable(plain).keys():
                continue  # the option selects layers
            now, then = (student.peft_config["default"] for student in (changed, plain))
            if getattr(now, "target_modules", None) != getattr(then, "target_modules", None):
                continue
            found = getattr(now, option, None)
            if type(value)(found) != value:
                raise Broken(f"`{option}: {value}` is {found} in the configuration of peft")

    def four_bits(self, adapter: Any) -> None:
        """On a base in 4 bits it has the gradients of the dequantised base, or such a base is refused."""
        if declared(adapter, "not_on_quantised"):
            refused_by_check(adapter, "a quantised base", load=FOUR_BITS)
            return
        if hook(adapter, "check") and (found := adapter.check(recipe_with(load=FOUR_BITS))):
            raise Broken(f"`check` refuses a quantised base ({found[0].what}); declare `not_on_quantised`")
        quantised, plain = in_four_bits(self._small.base)
        students = [self._small.adapted(replace(adapter), model) for model in (quantised, plain)]
        if trainable(students[0]).keys() != trainable(students[1]).keys():
            raise Broken("on a base in 4 bits other parameters are trained")
        for student in students:
            noise = torch.Generator().manual_seed(3)
            for parameter in trainable(student).values():
                parameter.data = parameter.data.float() + 0.01 * torch.randn(parameter.shape, generator=noise)
            torch.manual_seed(0)
            self._small.logits(student)  # evaluation repacks 4-bit layers on some CPUs
            torch.autograd.backward(self._small.loss(student.train()))
        largest = 0.0
        for name, parameter in trainable(students[1]).items():
            found, wanted = trainable(students[0])[name].grad, parameter.grad
            if not same(found, wanted, rtol=2e-2, atol=1e-4):
                raise Broken(f"the gradient of `{name}` differs from that on the dequantised base")
            largest = max(largest, 0.0 if wanted is None else float(wanted.abs().max()))
        if largest < 1e-3:
            raise Broken("no gradient is larger than 0.001")


def declared(adapter: Any, trait: str) -> bool:
    """Return whether an adapter declares a trait."""
    return bool(getattr(AdapterTraits.of(adapter), trait))
